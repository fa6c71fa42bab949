"""`desired(model, config, num_wanted)`: everything that should exist for a ModelDeployment.

`held(model, error, num_wanted)` is what should go on existing when that cannot be told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stoker_operator.api import InvalidSpec, ModelDeployment
from stoker_operator.config import OperatorConfig
from stoker_operator.desired.children import Child, Headcount, children
from stoker_operator.desired.pod import pod_template
from stoker_operator.desired.revision import POD_SHAPING, revision_of
from stoker_operator.desired.scale import Scale, scale_of
from stoker_operator.desired.shape import GroupShape
from stoker_operator.profiles import profile_of

NOBODY = Headcount()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should exist.

    Args:
        model: what it is for.
        scale: how many replicas, and how many of them may be missing or too many.
        revision: hash of what the ModelDeployment asks of its pods; not of the operator's own defaults, so
            that another version of the operator restarts nothing. Empty when the spec does not say.
        shape: of the groups of this revision. None when the spec cannot be served.
        shared: what all pods share while none drains and each is a group.
        invalid: why the spec cannot be served.
    """

    model: ModelDeployment
    scale: Scale
    revision: str
    shape: GroupShape | None
    shared: tuple[Child, ...]
    invalid: InvalidSpec | None = None

    @property
    def is_held(self) -> bool:
        """Whether pods of other revisions stay as they are, repaired and scaled, but not replaced."""
        return self.model.spec.rollout.paused or self.invalid is not None

    def children(self, headcount: Headcount = NOBODY) -> tuple[Child, ...]:
        """Return what all pods share, with these pods there."""
        return self.shared if headcount == NOBODY else children(self.model, self.scale, headcount)

    def child(self, kind: str, headcount: Headcount = NOBODY) -> dict[str, Any] | None:
        """Return one of these, None when it should not exist or the spec does not tell."""
        return next((child.manifest for child in self.children(headcount) if child.kind == kind), None)


def desired(model: ModelDeployment, config: OperatorConfig, num_wanted: int) -> Wanted:
    """Return what should exist for a ModelDeployment.

    Args:
        model: what it asks for.
        config: the operator's settings.
        num_wanted: replicas that should serve; see `wanted_replicas`.

    Raises:
        InvalidSpec: the operator does not allow what it asks for.
    """
    scale = scale_of(model, num_wanted)
    return Wanted(
        model=model,
        scale=scale,
        revision=revision_of(model),
        shape=GroupShape(pod_template(model, config, profile_of(model.spec))),
        shared=children(model, scale, NOBODY),
    )


def held(model: ModelDeployment, error: InvalidSpec, num_wanted: int) -> Wanted:
    """Return what should go on existing while a spec cannot be served: the pods of earlier ones.

    Args:
        model: as far as it can be read.
        error: why it cannot be served.
        num_wanted: replicas that should serve.
    """
    scale = scale_of(model, num_wanted)
    return Wanted(
        model=model,
        scale=scale,
        revision="" if model.unread & POD_SHAPING else revision_of(model),
        shape=None,
        shared=children(model, scale, NOBODY),
        invalid=error,
    )
