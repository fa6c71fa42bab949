"""How many replicas are wanted, and what follows from the number, whoever it comes from."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_builders import CONFIG, NOW, make_model, make_observed, make_pod

from stoker_operator.api import parse, salvage
from stoker_operator.desired import Scale, desired, scale_of, wanted_replicas
from stoker_operator.desired.children import BUDGET
from stoker_operator.plan import Create, Patch, plan
from stoker_operator.status import status

PERCENT = st.integers(0, 100).map("{}%".format)
LIMIT = st.integers(0, 5) | PERCENT


@pytest.mark.parametrize(
    ("surge", "unavailable", "expected"),
    [
        pytest.param(1, 0, (1, 0), id="numbers"),
        pytest.param("25%", "25%", (2, 1), id="surge-up-unavailable-down"),
        pytest.param("0%", "10%", (1, 0), id="both-round-to-none"),
        pytest.param(0, "100%", (0, 5), id="all-at-once"),
    ],
)
def test_rollout_limits_of_five_replicas(
    surge: int | str, unavailable: int | str, expected: tuple[int, int]
) -> None:
    model = parse(make_model(rollout={"maxSurge": surge, "maxUnavailable": unavailable}))
    scale = scale_of(model, 5)
    assert (scale.max_surge, scale.max_unavailable) == expected


def test_as_many_are_wanted_as_the_spec_says_and_none_while_suspended() -> None:
    assert wanted_replicas(parse(make_model(replicas=3))) == 3
    assert wanted_replicas(parse(make_model(replicas=3, suspend=True))) == 0


def test_what_exists_is_wanted_only_where_the_number_cannot_be_read() -> None:
    assert wanted_replicas(salvage(make_model(replicas="three")), 2) == 2
    assert wanted_replicas(salvage(make_model(replicas="three", suspend=True)), 2) == 0
    assert wanted_replicas(salvage(make_model(replicas=3, engine={"dtype": "no"})), 2) == 3


@given(num_wanted=st.integers(0, 1000), surge=LIMIT, unavailable=LIMIT, own=st.none() | LIMIT)
def test_a_rollout_can_always_begin_and_percentages_never_pass_the_number(
    num_wanted: int, surge: int | str, unavailable: int | str, own: int | str | None
) -> None:
    budget = {} if own is None else {"maxUnavailable": own}
    rollout = {"maxSurge": surge, "maxUnavailable": unavailable}
    scale = scale_of(parse(make_model(rollout=rollout, podDisruptionBudget=budget)), num_wanted)
    assert scale.num_wanted == num_wanted
    assert scale.max_surge + scale.max_unavailable > 0
    for given_limit, found in ((unavailable, scale.max_unavailable), (own, scale.max_disrupted)):
        assert not isinstance(given_limit, str) or 0 <= found <= num_wanted
    assert own is not None or scale.max_disrupted == scale.max_unavailable


@pytest.mark.parametrize("rollout", [{}, {"maxSurge": "50%", "maxUnavailable": "50%"}], ids=["1-0", "half"])
def test_another_number_than_the_spec_says_is_as_good_as_the_spec(rollout: dict[str, Any]) -> None:
    by_spec = desired(parse(make_model(replicas=4, rollout=rollout)), CONFIG, 4)
    by_other = desired(parse(make_model(replicas=1, rollout=rollout)), CONFIG, 4)
    assert (by_other.scale, by_other.revision, by_other.shape) == (
        by_spec.scale,
        by_spec.revision,
        by_spec.shape,
    )
    assert by_other.shared == by_spec.shared
    assert by_other.child(BUDGET) is not None


def test_pods_and_status_follow_the_number_that_is_handed_in() -> None:
    model = make_model(replicas=1)
    two = desired(parse(model), CONFIG, 2)
    observed = make_observed(two, make_pod(two), model=model)
    assert [type(action) for action in plan(two, observed, NOW).actions] == [Create]
    ready = status(two, observed, CONFIG, NOW)["conditions"][0]
    assert (ready["type"], ready["status"]) == ("Ready", "False")
    assert ready["message"].startswith("1 of 2 replicas answer")
    none = desired(parse(model), CONFIG, 0)
    observed = make_observed(none, make_pod(none), model=model)
    assert [type(action) for action in plan(none, observed, NOW).actions] == [Patch]
    assert status(none, observed, CONFIG, NOW)["conditions"][0]["reason"] == "ScaledToZero"
    assert none.scale == Scale(num_wanted=0, max_surge=1, max_unavailable=0, max_disrupted=0)
