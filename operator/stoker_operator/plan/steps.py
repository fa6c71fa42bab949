"""What a plan consists of: what all pods share, then a step for each group that something is done about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from stoker_operator.api import labels
from stoker_operator.desired import record
from stoker_operator.observed import Manifest
from stoker_operator.plan.actions import Action, Create, Delete, Patch, Purpose
from stoker_operator.plan.groups import Group
from stoker_operator.plan.members import Member


class Move(Enum):
    """What is done about a group."""

    START = "start"
    COMPLETE = "complete"  # pods of it are missing, and none of the others may have a node
    ADMIT = "admit"  # its pods may go to nodes
    DRAIN = "drain"  # its Service sends it nothing more
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Step:
    """What is done about one group.

    A pass may end between two of its actions. What it leaves behind is for the next plan to go on with.

    Args:
        move: what is done.
        group: its name.
        reason: CamelCase, of all its actions.
        actions: one for each pod.
    """

    move: Move
    group: str
    reason: str
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, in this order, and when to look again although nothing happened.

    Args:
        shared: what is no group's: adoptions, records of revisions, children that all pods share.
        steps: group by group. Starts come before drains, those before removals.
        requeue_after_s: seconds until time alone may change the plan; None when only events can.
        draining: uids of the pods whose requests in flight the next plans need to know.
        groups: what it told the observed pods apart into, for whoever looks at the same ones.
    """

    shared: tuple[Action, ...] = ()
    steps: tuple[Step, ...] = ()
    requeue_after_s: float | None = None
    draining: frozenset[str] = frozenset()
    groups: tuple[Group, ...] = field(default=(), compare=False)

    @property
    def actions(self) -> tuple[Action, ...]:
        """All of it, in its order; empty at the fixed point."""
        return (*self.shared, *(action for step in self.steps for action in step.actions))

    @property
    def records(self) -> tuple[Create, ...]:
        """The revisions to put on record, before all else: the rest follows from whether that works."""
        found = (action for action in self.shared if isinstance(action, Create))
        return tuple(action for action in found if action.kind == record.KIND)


def start(group: str, manifests: Iterable[Manifest], reason: str) -> Step:
    """Create the pods of a group."""
    return Step(Move.START, group, reason, tuple(Create(manifest, reason) for manifest in manifests))


def complete(group: Group, manifests: Iterable[Manifest]) -> Step:
    """Create the pods that a group lacks: whoever began it did not get further."""
    creations = tuple(Create(manifest, "GroupIncomplete") for manifest in manifests)
    return Step(Move.COMPLETE, group.name, "GroupIncomplete", creations)


def admit(group: Group, now: datetime) -> Step:
    """Let the pods of a group go to nodes: those that our gate still keeps back."""
    patches = (_ungate(member, now) for member in group.staying if member.is_held_back)
    return Step(Move.ADMIT, group.name, "GroupComplete", tuple(patches))


def leave(group: Group, reason: str, now: datetime) -> Step:
    """Begin to take a group away: it drains, or goes at once where it cannot have requests."""
    if group.leader is None or not group.has_answered:
        return remove(group, reason)
    # A copy of a pod has its labels, and so its rank, and the Service sends it requests as well.
    patches = (
        Patch("Pod", leader.name, leader.uid, _stop_serving(now), Purpose.DRAIN, reason)
        for leader in group.members
        if leader.rank == 0 and (leader.is_staying or leader is group.leader)
    )
    return Step(Move.DRAIN, group.name, reason, tuple(patches))


def remove(group: Group, reason: str) -> Step:
    """Delete the pods of a group that are not on their way out already."""
    deletions = (Delete("Pod", member.name, member.uid, reason) for member in group.staying)
    return Step(Move.REMOVE, group.name, reason, tuple(deletions))


def _ungate(member: Member, now: datetime) -> Patch:
    gates = [gate for gate in member.pod["spec"]["schedulingGates"] if gate["name"] != labels.GROUP_GATE]
    notes = {labels.LET_GO_AT: _written(now)}
    body = {"metadata": {"annotations": notes}, "spec": {"schedulingGates": gates}}
    return Patch("Pod", member.name, member.uid, body, Purpose.ADMIT, "GroupComplete")


def _stop_serving(now: datetime) -> dict[str, Any]:
    notes = {labels.DRAINING_SINCE: _written(now)}
    return {"metadata": {"labels": {labels.SERVING: "false"}, "annotations": notes}}


def _written(now: datetime) -> str:
    # To the millisecond: a second cut off here would be one less to settle.
    return now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
