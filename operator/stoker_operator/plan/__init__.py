"""What to do next: `plan(wanted, observed, now)` compares what is wanted with what was observed. Pure."""

from stoker_operator.plan.actions import (
    Action,
    Adopt,
    Apply,
    CreatePod,
    Delete,
    DeletePod,
    Plan,
    Record,
    StopServing,
    records,
)
from stoker_operator.plan.deletion import plan_deletion
from stoker_operator.plan.groups import groups
from stoker_operator.plan.planner import name_conflict, plan

__all__ = [
    "Action",
    "Adopt",
    "Apply",
    "CreatePod",
    "Delete",
    "DeletePod",
    "Plan",
    "Record",
    "StopServing",
    "groups",
    "name_conflict",
    "plan",
    "plan_deletion",
    "records",
]
