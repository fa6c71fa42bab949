"""`desired(model, config)`: everything that should exist for a ModelDeployment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stoker_operator.api import ModelDeployment, Spec
from stoker_operator.config import OperatorConfig
from stoker_operator.desired.hashing import json_hash
from stoker_operator.desired.network import budget, service
from stoker_operator.desired.pod import pod_template

# The parts of a spec that shape its pods. Defaults are left out, so that an operator whose CRD has more
# fields than the last one's computes the same revision.
_POD_SHAPING = {"model", "engine", "accelerator", "scheduling", "pod"}
_REVISION_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should exist.

    Args:
        model: what it is for.
        revision: hash of what the ModelDeployment asks of its pods; not of the operator's own defaults, so
            that another version of the operator restarts nothing.
        pod: template of the pods of this revision.
        service: the Service.
    """

    model: ModelDeployment
    revision: str
    pod: dict[str, Any]
    service: dict[str, Any]

    @property
    def is_held(self) -> bool:
        """Whether pods of other revisions stay as they are, repaired and scaled, but not replaced."""
        return self.model.spec.rollout.paused

    def budget(self, num_draining: int = 0) -> dict[str, Any] | None:
        """Return the PodDisruptionBudget, if there should be one, while so many replicas drain."""
        return budget(self.model, num_draining)


def revision_of(spec: Spec) -> str:
    """Return the hash of what a spec asks of its pods."""
    asked = spec.model_dump(
        mode="json", by_alias=True, include=_POD_SHAPING, exclude_defaults=True, exclude_none=True
    )
    return json_hash(asked, _REVISION_LENGTH)


def desired(model: ModelDeployment, config: OperatorConfig) -> Wanted:
    """Return what should exist for a ModelDeployment.

    Raises:
        InvalidSpec: the operator does not allow what it asks for.
    """
    return Wanted(
        model=model,
        revision=revision_of(model.spec),
        pod=pod_template(model, config),
        service=service(model),
    )
