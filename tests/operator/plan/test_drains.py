"""When a draining pod may go, and what is said of it: drained only where somebody saw it empty."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from operator_builders import NOW, ago, make_observed, make_pod, make_wanted

from stoker_operator.api import labels
from stoker_operator.desired.children import BUDGET, Headcount
from stoker_operator.observed import Node, Observed, Reading
from stoker_operator.plan import Create, Delete, plan


def drains(since_s: float, in_flight: int | None, *, is_started: bool = True, **spec: Any) -> Any:
    """Return why a draining pod beside a serving one goes now, and how long to wait otherwise."""
    wanted = make_wanted(**spec)
    draining = make_pod(
        wanted, 0, is_serving=False, is_ready=False, is_started=is_started, draining_since=ago(since_s)
    )
    name = draining["metadata"]["name"]
    todo = plan(
        wanted, make_observed(wanted, draining, make_pod(wanted, 1), in_flight={name: in_flight}), NOW
    )
    assert all(isinstance(action, Delete) and action.name == name for action in todo.actions)
    return [action.reason for action in todo.actions], todo.requeue_after_s


@pytest.mark.parametrize("in_flight", [None, 1])
def test_what_nobody_saw_empty_is_not_called_drained(in_flight: int | None) -> None:
    assert drains(121, in_flight) == (["DrainDeadline"], None)


def test_an_engine_that_does_not_run_has_nothing_to_finish_and_is_not_called_drained() -> None:
    assert drains(10, None, is_started=False) == (["EngineNotRunning"], None)


def test_a_pod_on_a_silent_node_goes_at_its_deadline_and_is_not_called_drained() -> None:
    wanted, nodes = make_wanted(), {"node-a": Node(is_ready=False), "node-b": Node()}
    draining = make_pod(wanted, 0, is_serving=False, draining_since=ago(121))
    observed = make_observed(wanted, draining, make_pod(wanted, 1, node="node-b"), nodes=nodes)
    (delete,) = plan(wanted, observed, NOW).actions
    assert isinstance(delete, Delete)
    assert delete.reason == "DrainDeadline"


@pytest.mark.parametrize(
    ("since_s", "in_flight", "expected"),
    [
        pytest.param(1, 0, ([], 59.0), id="just-begun"),
        pytest.param(57, 0, ([], 3.0), id="empty-but-load-balancers-may-not-know"),
        pytest.param(60, 0, (["Drained"], None), id="over"),
        pytest.param(60, 1, ([], 60.0), id="over-and-busy"),
    ],
)
def test_a_pod_stays_as_long_as_load_balancers_need(since_s: float, in_flight: int, expected: Any) -> None:
    assert drains(since_s, in_flight, service={"drainSeconds": 60}) == expected


@pytest.mark.parametrize(
    ("read_s_ago", "expected"),
    [
        pytest.param(300, None, id="before-the-drain"),
        pytest.param(28, None, id="while-it-may-still-be-sent-some"),
        pytest.param(11, None, id="by-a-process-that-stood-still"),
        pytest.param(9, "Drained", id="just-now"),
    ],
)
def test_only_a_fresh_reading_ends_a_drain(read_s_ago: float, expected: str | None) -> None:
    wanted = make_wanted()
    pod = make_pod(wanted, 0, is_serving=False, draining_since=ago(30))
    observed = make_observed(wanted, pod, make_pod(wanted, 1))
    observed = replace(observed, readings={pod["metadata"]["uid"]: Reading(ago(read_s_ago), 0)})
    todo = plan(wanted, observed, NOW)
    assert [action.reason for action in todo.actions] == ([] if expected is None else [expected])
    assert todo.requeue_after_s == (90.0 if expected is None else None)


def test_load_balancers_get_their_time_even_where_it_is_longer_than_the_grace_period() -> None:
    spec: Any = {"service": {"drainSeconds": 300}, "pod": {"terminationGracePeriodSeconds": 60}}
    assert drains(100, 1, **spec) == ([], 200.0)
    assert drains(300, 1, **spec) == (["DrainDeadline"], None)


def test_drain_seconds_restart_nothing() -> None:
    plain = make_wanted()
    for service in ({"drainSeconds": 3}, {"drainSeconds": 60}):
        other = make_wanted(service=service)
        assert (other.revision, other.child("Service")) == (plain.revision, plain.child("Service"))


def test_a_drain_is_not_taken_back_by_the_label() -> None:
    wanted = make_wanted()
    pod = make_pod(wanted, 0, is_ready=False, is_started=True, draining_since=ago(10))
    name = pod["metadata"]["name"]
    assert pod["metadata"]["labels"][labels.SERVING] == "true"
    budget = wanted.child(BUDGET, Headcount(num_draining=1))
    observed: Observed = make_observed(wanted, pod, in_flight={name: 0}, budget=budget)
    create, delete = plan(wanted, observed, NOW).actions
    assert isinstance(create, Create)
    assert isinstance(delete, Delete)
    assert (delete.name, delete.reason) == (name, "Drained")
