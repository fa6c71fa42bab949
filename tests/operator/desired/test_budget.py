"""The PodDisruptionBudget: how many replicas it keeps, and who may say so."""

from __future__ import annotations

from typing import Any

import pytest
from operator_builders import make_model, make_wanted

from stoker_operator.api import parse
from stoker_operator.desired.children import BUDGET, Headcount
from stoker_operator.desired.revision import revision_of


def kept(num_draining: int = 0, **spec: Any) -> int | None:
    """Return how many must stay available; None without a budget."""
    budget = make_wanted(**spec).child(BUDGET, Headcount(num_draining=num_draining))
    return None if budget is None else int(budget["spec"]["minAvailable"])


@pytest.mark.parametrize(
    ("rollout", "own", "expected"),
    [
        pytest.param({}, {}, 5, id="nobody-may-go"),
        pytest.param({"maxUnavailable": 2}, {}, 3, id="as-many-as-a-rollout-may-take"),
        pytest.param({}, {"maxUnavailable": 1}, 4, id="room-for-evictions-alone"),
        pytest.param({"maxUnavailable": 2}, {"maxUnavailable": 0}, 5, id="room-for-rollouts-alone"),
        pytest.param({}, {"maxUnavailable": "25%"}, 3, id="percentages-round-up"),
        pytest.param({}, {"maxUnavailable": "0%"}, 5, id="none-in-percent"),
        pytest.param({}, {"maxUnavailable": "100%"}, None, id="no-budget"),
        pytest.param({}, {"maxUnavailable": 7}, None, id="more-than-there-are"),
    ],
)
def test_replicas_that_evictions_leave_of_five(
    rollout: dict[str, Any], own: dict[str, Any], expected: int | None
) -> None:
    assert kept(replicas=5, rollout=rollout, podDisruptionBudget=own) == expected


def test_room_for_one_of_one_is_no_budget() -> None:
    assert kept(podDisruptionBudget={"maxUnavailable": "1%"}) is None


def test_pods_that_drain_are_made_up_for_all_the_same() -> None:
    assert kept(2, replicas=3, podDisruptionBudget={"maxUnavailable": 1}) == 4


def test_it_shapes_no_pod() -> None:
    plain = revision_of(parse(make_model()))
    assert revision_of(parse(make_model(podDisruptionBudget={"maxUnavailable": "100%"}))) == plain
