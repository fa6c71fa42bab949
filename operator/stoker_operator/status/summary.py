"""A stored ModelDeployment in a few numbers and words, for metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stoker_operator.observed import Manifest

# A status is also other people's to write: what no reason of ours looks like must not become a label's value.
_REASON = re.compile(r"[A-Z][A-Za-z]{0,63}")
OTHER = "Other"


@dataclass(frozen=True, slots=True)
class Summary:
    """What is wanted and what is.

    Args:
        namespace: of the ModelDeployment.
        name: of the ModelDeployment.
        num_wanted: replicas that should answer.
        num_existing: replicas that exist.
        num_ready: replicas that answer.
        num_updated: replicas of the current revision.
        phase: Ready, Reconciling (under way), Stalled (nothing more happens by itself), NotReady (held back,
            as a paused rollout is) or Unknown (no status was written for this generation yet).
        reason: of the condition that the phase comes from.
    """

    namespace: str
    name: str
    num_wanted: int
    num_existing: int
    num_ready: int
    num_updated: int
    phase: str
    reason: str


def summary(model: Manifest) -> Summary:
    """Return the summary of a ModelDeployment as stored."""
    metadata, spec, status = model["metadata"], model.get("spec") or {}, model.get("status") or {}
    phase, reason = _phase(model)
    return Summary(
        namespace=metadata["namespace"],
        name=metadata["name"],
        num_wanted=0 if spec.get("suspend") else spec.get("replicas", 1),
        num_existing=status.get("replicas") or 0,
        num_ready=status.get("readyReplicas") or 0,
        num_updated=status.get("updatedReplicas") or 0,
        phase=phase,
        reason=reason if _REASON.fullmatch(reason) else OTHER,
    )


def _phase(model: Manifest) -> tuple[str, str]:
    generation = model["metadata"].get("generation", 0)
    conditions = {
        condition["type"]: condition
        for condition in (model.get("status") or {}).get("conditions") or ()
        if condition.get("observedGeneration", generation) == generation
    }
    ready, stalled = conditions.get("Ready"), conditions.get("Stalled", {})
    if ready is None:
        return "Unknown", "Unknown"
    if stalled.get("status") == "True":
        return "Stalled", stalled.get("reason", "")
    if ready["status"] == "True":
        return "Ready", ready.get("reason", "")
    is_reconciling = conditions.get("Reconciling", {}).get("status") == "True"
    return "Reconciling" if is_reconciling else "NotReady", ready.get("reason", "")
