"""The hash of what a ModelDeployment asks of its pods: another one replaces them."""

from __future__ import annotations

from stoker_operator.api import ModelDeployment
from stoker_operator.desired.hashing import json_hash

# The parts of a spec that shape its pods. Defaults are left out, so that an operator whose CRD has more
# fields than the last one's computes the same revision.
POD_SHAPING = {"model", "engine", "accelerator", "scheduling", "pod"}
_REVISION_LENGTH = 8


def revision_of(model: ModelDeployment) -> str:
    """Return the hash of what a ModelDeployment asks of its pods, without the operator's own defaults."""
    asked = model.spec.model_dump(
        mode="json", by_alias=True, include=POD_SHAPING, exclude_defaults=True, exclude_none=True
    )
    if model.restarted_at:
        asked["restartedAt"] = model.restarted_at
    return json_hash(asked, _REVISION_LENGTH)
