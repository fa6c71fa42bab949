"""What conditions are made from, and what they are before they get a generation and a time."""

from __future__ import annotations

from dataclasses import dataclass

from stoker_operator.api import ModelDeployment
from stoker_operator.desired import Scale
from stoker_operator.plan.groups import Group
from stoker_operator.profiles import Cause
from stoker_operator.status.causes import PodState
from stoker_operator.status.promise import is_kept


@dataclass(frozen=True, slots=True)
class Aspect:
    """A condition without its generation and time."""

    type: str
    status: str
    cause: Cause


@dataclass(frozen=True, slots=True)
class View:
    """What all conditions are made from."""

    model: ModelDeployment
    scale: Scale
    live: list[Group]
    updated: list[Group]
    states: list[PodState]  # of the pods whose state is the news: the current revision's, else all
    num_answering: int  # replicas of the current revision that answer
    num_leftover: int  # pods that should be gone and are not yet
    num_promised: int  # replicas that Ready stands for
    has_service: bool
    misrouted: tuple[str, ...]  # where the Service differs, so that requests do not reach our pods
    failure: Cause | None  # the call that keeps failing
    given_up: Cause | None  # groups that nobody replaces any more
    is_late: bool  # the rollout has not got on within its deadline

    @property
    def is_complete(self) -> bool:
        """Whether all wanted replicas answer, and requests reach them."""
        return self.num_answering >= self.scale.num_wanted and self.is_routed

    @property
    def is_promise_kept(self) -> bool:
        """Whether as many replicas answer as were promised, and requests reach them."""
        is_enough = is_kept(self.num_promised, self.scale.num_wanted, self.num_answering)
        return is_enough and self.is_routed

    @property
    def is_routed(self) -> bool:
        """Whether the Service is there and leads to our pods."""
        return self.has_service and not self.misrouted

    @property
    def is_paused_between(self) -> bool:
        """Whether a rollout is paused in its middle, and enough pods answer."""
        num_answering = self.num_answering + self.num_other_answering
        is_between = self.model.spec.rollout.paused and 0 < len(self.updated) < len(self.live)
        return is_between and num_answering >= self.scale.num_wanted

    @property
    def num_other_answering(self) -> int:
        """Replicas of other revisions that answer."""
        return sum(group.is_available for group in self.live) - self.num_answering
