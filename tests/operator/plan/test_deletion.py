"""A ModelDeployment that is being deleted: its budget goes, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
from operator_builders import (
    NOW,
    ago,
    make_model,
    make_observed,
    make_pod,
    make_wanted,
    stored,
    timestamp,
    wanted_of,
)

from stoker_operator.desired.children import BUDGET
from stoker_operator.observed import Observed
from stoker_operator.plan import Delete, Plan, plan


def deleted(*finalizers: str) -> dict[str, Any]:
    model = make_model(replicas=2)
    model["metadata"] |= {"deletionTimestamp": timestamp(ago(60)), "finalizers": list(finalizers)}
    return model


def budget_of(**metadata: Any) -> dict[str, Any]:
    budget = stored(make_wanted(replicas=2).child(BUDGET), "budget")
    budget["metadata"] |= metadata
    return budget


def plan_for(model: dict[str, Any], budget: dict[str, Any]) -> Plan:
    wanted = make_wanted(replicas=2)
    pods = [make_pod(wanted, 0), make_pod(wanted, 1, is_ready=False, phase="Failed")]
    observed = make_observed(wanted, *pods, model=model, budget=budget)
    return plan(wanted_of(model), observed, NOW)


@pytest.mark.parametrize("finalizer", ["foregroundDeletion", "backup.example/hold"])
def test_the_budget_of_one_that_is_held_goes_and_nothing_else(finalizer: str) -> None:
    model = deleted(finalizer)
    todo = plan_for(model, budget_of())
    assert todo == Plan((Delete("PodDisruptionBudget", "smol", "uid-budget", "OwnerDeleted"),))


@pytest.mark.parametrize(
    ("finalizers", "metadata"),
    [
        pytest.param(["held"], {"ownerReferences": []}, id="somebody-else's"),
        pytest.param(["held"], {"deletionTimestamp": timestamp(ago(5))}, id="already-on-its-way"),
        pytest.param(["orphan"], {}, id="children-are-to-stay"),
    ],
)
def test_what_is_not_ours_to_delete_stays(finalizers: list[str], metadata: dict[str, Any]) -> None:
    model = deleted(*finalizers)
    assert plan_for(model, budget_of(**metadata)) == Plan()


def test_without_a_budget_there_is_nothing_to_do() -> None:
    model = deleted("held")
    assert plan(wanted_of(model), Observed(model), NOW) == Plan()
