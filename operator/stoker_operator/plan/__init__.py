"""What to do next: `plan(wanted, observed, now)` compares what is wanted with what was observed. Pure."""

from stoker_operator.plan.actions import Action, Adopt, Apply, Create, Delete, Patch, Purpose
from stoker_operator.plan.deletion import plan_deletion
from stoker_operator.plan.groups import groups
from stoker_operator.plan.planner import name_conflict, plan
from stoker_operator.plan.steps import Move, Plan, Step

__all__ = [
    "Action",
    "Adopt",
    "Apply",
    "Create",
    "Delete",
    "Move",
    "Patch",
    "Plan",
    "Purpose",
    "Step",
    "groups",
    "name_conflict",
    "plan",
    "plan_deletion",
]
