"""Whose turn it is to go to nodes, told from the pods of several groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from group_builders import GPU, pods_of
from operator_builders import (
    NOW,
    ago,
    make_observed,
    make_pod,
    make_wanted,
    timestamp,
    with_size,
)

from stoker_operator.api import labels
from stoker_operator.desired import Wanted
from stoker_operator.observed import Turn
from stoker_operator.plan import Create, Delete, Move, Patch, Plan, plan
from stoker_operator.plan.turns import (
    MAX_BACKOFF_S,
    OVERDUE_S,
    PATIENCE_S,
    SPREAD_S,
    Id,
    backoff_s,
    entrant,
    patience_s,
    ticket,
    turns,
)

Object = dict[str, Any]
GATE = {"name": labels.GROUP_GATE}
NPU = "example.com/npu"
ENDED_S = PATIENCE_S + SPREAD_S + 1.0


def stand(
    *found: list[Object], going: Iterable[str] = (), balked: Iterable[str] = (), now: datetime = NOW
) -> dict[str, Turn]:
    """The turns by the name of the ModelDeployment."""
    ids = {id_of(pods): pods for pods in found}
    entrants = [entrant([made for pod in pods if (made := ticket(pod))]) for pods in ids.values()]
    result = turns(
        [one for one in entrants if one is not None],
        {id_ for id_ in ids if id_[0] in going},
        {id_ for id_ in ids if id_[0] in balked},
        now,
    )
    return {name: turn for (name, _), turn in result.items()}


def id_of(pods: list[Object]) -> Id:
    own = pods[0]["metadata"]["labels"]
    return own[labels.DEPLOYMENT], own[labels.POD_GROUP]


def test_the_first_that_was_made_goes_and_each_other_stands_behind_the_one_before() -> None:
    found = stand(pods_of("c", made_at=ago(3)), pods_of("a", made_at=ago(1)), pods_of("b", made_at=ago(1)))
    assert found == {"c": Turn(), "a": Turn(ahead="c-0"), "b": Turn(ahead="a-0")}
    assert found["c"].has_come
    assert not found["a"].has_come


def test_nobody_goes_while_one_that_was_let_go_lacks_a_node() -> None:
    first, second = pods_of("a", let_go_at=NOW), pods_of("b", made_at=ago(5))
    assert stand(first, second)["b"].ahead == "a-0"
    first[0]["spec"]["nodeName"] = "node-a"
    assert stand(first, second)["b"].ahead == "a-0"
    first[1]["spec"]["nodeName"] = "node-b"
    assert stand(first, second) == {"b": Turn()}


def test_one_of_which_only_some_pods_were_let_go_is_on_its_way() -> None:
    first = pods_of("a", let_go_at=NOW, nodes=1)
    first[1]["spec"]["schedulingGates"] = [GATE]
    assert stand(first, pods_of("b"))["b"].ahead == "a-0"


def test_one_that_is_being_let_go_at_this_moment_is_on_its_way() -> None:
    assert stand(pods_of("b"), pods_of("a"), going=["b"]) == {"b": Turn(), "a": Turn(ahead="b-0")}


@pytest.mark.parametrize("how", ["deleted", "ended", "incomplete", "placed", "held by others"])
def test_who_is_not_in_the_line(how: str) -> None:
    first = pods_of("a", let_go_at=NOW, nodes=1)
    if how == "deleted":
        first[0]["metadata"]["deletionTimestamp"] = timestamp(NOW)
    elif how == "ended":
        first[0]["status"]["phase"] = "Failed"
    elif how == "incomplete":
        first.pop()
    elif how == "placed":
        first[1]["spec"]["nodeName"] = "node-a"
    else:
        first[1]["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    assert stand(first, pods_of("b")) == {"b": Turn()}


def test_those_compete_that_want_one_kind_of_accelerator_however_many() -> None:
    found = stand(
        pods_of("a", wants={GPU: "8"}),
        pods_of("b", wants={GPU: "1", "memory": "1Gi"}),
        pods_of("c", wants={NPU: "1"}),
        pods_of("d", wants={"cpu": "2"}),
        pods_of("e", wants={}),
        pods_of("f", wants={GPU: "1", NPU: "1"}),
        pods_of("g", wants={NPU: "1"}),
    )
    assert {name: turn.ahead for name, turn in found.items()} == {
        "a": "",
        "b": "a-0",
        "c": "",
        "d": "",
        "e": "d-0",
        "f": "c-0",
        "g": "f-0",
    }


def test_a_group_of_one_pod_needs_no_turn() -> None:
    assert ticket(make_pod(make_wanted())) is None


def test_one_that_holds_something_makes_room_in_the_end() -> None:
    pods = pods_of("a", let_go_at=ago(PATIENCE_S), nodes=1)
    due_at = ago(PATIENCE_S) + timedelta(seconds=patience_s("a-0"))
    turn = stand(pods)["a"]
    assert (turn.is_over, turn.changes_at) == (False, due_at)
    assert stand(pods, now=due_at)["a"].is_over


def test_one_that_holds_nothing_makes_room_only_for_others() -> None:
    pods = pods_of("a", let_go_at=ago(ENDED_S))
    assert not stand(pods)["a"].is_over
    assert not stand(pods, pods_of("b", wants={NPU: "1"}))["a"].is_over
    assert stand(pods, pods_of("b"))["a"].is_over
    later = pods_of("b", num_turns=1)
    assert not stand(pods, later)["a"].is_over, "whoever has to wait anyway is not in line"


def test_others_wait_until_it_is_gone_unless_it_does_not_go() -> None:
    pods, next_ = pods_of("a", let_go_at=ago(ENDED_S), nodes=1), pods_of("b")
    turn = stand(pods, next_)["b"]
    assert turn.ahead == "a-0"
    assert turn.changes_at is not None
    assert turn.changes_at <= NOW + timedelta(seconds=OVERDUE_S)
    assert stand(pods, next_, now=turn.changes_at)["b"].has_come


def test_one_that_waited_long_with_nobody_behind_it_is_asked_before_others_go() -> None:
    pods, next_ = pods_of("a", let_go_at=ago(3600)), pods_of("b", made_at=NOW)
    found = stand(pods, next_)
    assert (found["a"].is_over, found["b"].ahead) == (True, "a-0")
    assert found["b"].changes_at == NOW + timedelta(seconds=OVERDUE_S)


def test_one_that_comes_back_stands_at_the_end_of_the_line_after_a_back_off() -> None:
    again = pods_of("a", made_at=ago(5), num_turns=1)
    turn = stand(again, pods_of("b", made_at=ago(1)))["a"]
    assert (turn.not_before, turn.has_come) == (ago(5) + timedelta(seconds=10), False)
    later = NOW + timedelta(seconds=6)
    assert stand(again, pods_of("b", made_at=ago(1)), now=later)["a"].ahead == "b-0"
    assert stand(again, now=later)["a"].has_come
    assert [backoff_s(count) for count in (0, 1, 2, 3)] == [0.0, 10.0, 20.0, 40.0]
    assert backoff_s(1000) == MAX_BACKOFF_S


def test_one_that_could_not_be_let_go_lets_the_others_go_first() -> None:
    first, second = pods_of("a", made_at=ago(9)), pods_of("b")
    assert stand(first, second, balked=["a"]) == {"b": Turn(), "a": Turn(ahead="b-0")}
    assert stand(first, balked=["a"]) == {"a": Turn()}


def test_the_patience_of_any_two_differs() -> None:
    spread = {patience_s(f"uid-{number}") for number in range(50)}
    assert len(spread) == 50
    assert all(PATIENCE_S <= seconds < PATIENCE_S + SPREAD_S for seconds in spread)


def test_what_others_write_on_a_pod_breaks_nothing() -> None:
    pods = pods_of("a", let_go_at=NOW)
    for key, text in ((labels.LET_GO_AT, "yesterday"), (labels.TURNS, "-1")):
        pods[0]["metadata"]["annotations"][key] = text
    pods[1]["metadata"]["annotations"].clear()
    assert stand(pods)["a"].changes_at == NOW + timedelta(seconds=patience_s("a-0"))


WANTED = with_size(make_wanted(), 2)


def plan_with(turn: Turn, *pods: Object, wanted: Wanted = WANTED) -> Plan:
    observed = make_observed(wanted, *pods, recorded=(wanted,))
    group = pods[0]["metadata"]["labels"][labels.POD_GROUP]
    return plan(wanted, replace(observed, turns={group: turn}), NOW)


def moves(todo: Plan) -> list[tuple[Move, str, int]]:
    return [(step.move, step.reason, len(step.actions)) for step in todo.steps]


def own(**fields: Any) -> list[Object]:
    pods = pods_of("smol", **fields)
    for pod in pods:
        pod["metadata"]["labels"][labels.POD_GROUP] = f"smol-{WANTED.revision}-0"
        pod["metadata"]["name"] = f"smol-{WANTED.revision}-0-{pod['metadata']['labels'][labels.RANK]}"
    return pods


def test_a_plan_lets_a_group_go_when_its_turn_has_come_and_says_when() -> None:
    assert moves(plan_with(Turn(ahead="other-0"), *own())) == []
    assert moves(plan_with(Turn(not_before=NOW + timedelta(seconds=9)), *own())) == []
    (step,) = plan_with(Turn(), *own()).steps
    patch = step.actions[0]
    assert isinstance(patch, Patch)
    assert patch.body["metadata"]["annotations"] == {labels.LET_GO_AT: "2026-03-01T12:00:00.000Z"}


def test_a_plan_lets_the_rest_of_a_group_follow_whatever_its_turn() -> None:
    pods = own()
    pods[0]["spec"]["schedulingGates"] = []
    assert moves(plan_with(Turn(ahead="other-0"), *pods)) == [(Move.ADMIT, "GroupComplete", 1)]


@pytest.mark.parametrize("num_gates", [0, 1])
def test_a_plan_takes_back_a_group_whose_turn_is_over(num_gates: int) -> None:
    pods = own(let_go_at=ago(90), nodes=1, num_turns=2)
    for pod in pods[2 - num_gates :]:
        pod["spec"]["schedulingGates"] = [GATE]
    for pod in pods:
        pod["metadata"]["annotations"] |= {labels.RESTARTS: "1", labels.FAILED_ON: "node-b=1"}
    todo = plan_with(Turn(is_over=True), *pods)
    assert moves(todo) == [(Move.START, "Replaced", 2), (Move.REMOVE, "NoRoom", 2)]
    for action in todo.steps[0].actions:
        assert isinstance(action, Create)
        notes = action.manifest["metadata"]["annotations"]
        assert {notes[labels.TURNS], notes[labels.RESTARTS]} == {"3", "1"}
        assert notes[labels.FAILED_ON] == "node-b=1"
        assert action.manifest["spec"]["schedulingGates"] == [GATE]


def test_a_group_whose_turn_is_over_makes_room_with_nobody_to_follow_it() -> None:
    none = with_size(make_wanted(replicas=0), 2)
    pods = own(let_go_at=ago(90), nodes=1)
    todo = plan_with(Turn(is_over=True), *pods, wanted=none)
    assert moves(todo) == [(Move.REMOVE, "NoRoom", 2)]
    assert all(isinstance(action, Delete) for action in todo.actions if action.reason == "NoRoom")


def test_a_plan_comes_back_when_a_turn_ends() -> None:
    later = NOW + timedelta(seconds=7)
    assert plan_with(Turn(ahead="other-0", changes_at=later), *own()).requeue_after_s == 7.0


def test_a_group_looks_for_another_node_from_when_it_was_let_go() -> None:
    pods = own(made_at=ago(600), let_go_at=ago(5))
    for pod in pods:
        pod["metadata"]["annotations"][labels.AVOIDS] = "node-a"
    assert moves(plan_with(Turn(), *pods)) == []
