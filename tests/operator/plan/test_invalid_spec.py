"""A spec that cannot be served: the pods of earlier ones are kept alive, by what they carry."""

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
    shape_of,
    stored,
    wanted_of,
)

from stoker_operator.api import InvalidSpec, parse, salvage
from stoker_operator.desired import Wanted, held, wanted_replicas
from stoker_operator.desired.children import BUDGET
from stoker_operator.observed import Node, Observed
from stoker_operator.plan import Apply, Create, Plan, plan

BAD: dict[str, Any] = {"model": {"source": "file:///models/m"}}
NODES = {"node-a": Node(), "node-b": Node(is_leaving=True)}


def invalid(**spec: Any) -> Wanted:
    model = make_model(**{**BAD, **spec})
    with pytest.raises(InvalidSpec) as caught:
        wanted_of(model)
    parsed = parse(model)
    return held(parsed, caught.value, wanted_replicas(parsed))


def steps(wanted: Wanted, observed: Observed) -> list[tuple[str, str]]:
    actions = plan(wanted, observed, NOW).actions
    return [(type(action).__name__, getattr(action, "name", "")) for action in actions]


def test_without_pods_nothing_is_made() -> None:
    assert plan(invalid(), Observed(make_model(**BAD)), NOW) == Plan()


def test_lost_pods_are_replaced_by_what_the_others_carry() -> None:
    good, bad = make_wanted(replicas=2), invalid(replicas=2)
    (create,) = plan(bad, make_observed(good, make_pod(good)), NOW).actions
    assert isinstance(create, Create)
    assert create.name == f"smol-{good.revision}-1"
    assert create.manifest["spec"] == shape_of(good).leader["spec"]
    assert plan(bad, make_observed(good, make_pod(good, 0), make_pod(good, 1)), NOW) == Plan()


def test_drains_and_scaling_go_on() -> None:
    good, bad = make_wanted(), invalid()
    leaving, other = make_pod(good, 0, node="node-b"), make_pod(good, 1)
    observed = make_observed(good, leaving, other, nodes=NODES)
    assert steps(bad, observed)[-1] == ("Patch", leaving["metadata"]["name"])
    drained = make_pod(good, 0, is_serving=False, draining_since=ago(30))
    observed = make_observed(good, drained, other, in_flight={drained["metadata"]["name"]: 0})
    assert steps(bad, observed) == [("Delete", drained["metadata"]["name"])]
    assert [step[0] for step in steps(invalid(suspend=True), make_observed(good, other))] == [
        "Delete",
        "Patch",
    ]


def test_a_service_that_cannot_be_read_is_left_as_it_is() -> None:
    good = make_wanted(service={"port": 8080})
    model = make_model(service={"port": "http"})
    bad = held(salvage(model), InvalidSpec("spec.service.port", "no number"), 1)
    assert plan(bad, make_observed(good, make_pod(good)), NOW) == Plan()


def test_a_number_of_replicas_that_cannot_be_read_is_the_one_there_is() -> None:
    good = make_wanted(replicas=3)
    model = make_model(replicas="three", rollout={"maxUnavailable": 1})
    readable = salvage(model)
    bad = held(readable, InvalidSpec("spec.replicas", "no number"), wanted_replicas(readable, 3))
    pods = [make_pod(good, ordinal) for ordinal in range(3)]
    observed = make_observed(good, *pods, budget=stored(good.child(BUDGET), "budget"))
    (apply,) = plan(bad, observed, NOW).actions
    assert isinstance(apply, Apply)
    assert apply.manifest["spec"]["minAvailable"] == 2, "the rest of the spec counts"
