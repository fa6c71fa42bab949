"""What to do while a ModelDeployment is being deleted: its budget goes before anything else does.

Foreground deletion waits for all pods, and somebody's finalizer may hold the object for days. Nobody starts a
replacement any more, so a budget that stays refuses every eviction until then.
"""

from __future__ import annotations

from stoker_operator.desired.children import BUDGET
from stoker_operator.desired.metadata import is_owned_by
from stoker_operator.observed import Observed
from stoker_operator.plan.actions import Delete
from stoker_operator.plan.steps import Plan

# The garbage collector's own finalizer: whoever deletes wants the children to stay as they are.
_ORPHAN = "orphan"


def plan_deletion(observed: Observed) -> Plan:
    """Return what to do about a ModelDeployment with a deletionTimestamp: at most delete its budget."""
    metadata, budget = observed.model["metadata"], observed.child(BUDGET)
    if budget is None or _ORPHAN in (metadata.get("finalizers") or ()):
        return Plan()
    if not is_owned_by(budget, metadata["uid"]) or "deletionTimestamp" in budget["metadata"]:
        return Plan()
    name, uid = budget["metadata"]["name"], budget["metadata"]["uid"]
    return Plan((Delete(BUDGET, name, uid, "OwnerDeleted"),))
