"""Groups of several pods: what becomes of them as their pods come, go and fail."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from operator_builders import (
    CONFIG,
    NOW,
    ago,
    make_observed,
    make_pod,
    make_record,
    make_wanted,
    shape_of,
    stored,
    timestamp,
    with_size,
)

from stoker_operator.api import labels
from stoker_operator.desired import Wanted
from stoker_operator.desired.children import BUDGET, Headcount
from stoker_operator.desired.shape import member
from stoker_operator.observed import Node, Observed
from stoker_operator.plan import Create, Delete, Move, Patch, Plan, Purpose, groups, plan
from stoker_operator.plan.groups import Phase
from stoker_operator.plan.successors import MAX_IN_A_ROW
from stoker_operator.status import status

Object = dict[str, Any]

SIZE = 3
WANTED = with_size(make_wanted(), SIZE)
GATE = {"name": labels.GROUP_GATE}


def pods_of(
    wanted: Wanted = WANTED, ordinal: int = 0, *, is_gated: bool = False, **fields: Any
) -> list[Object]:
    """The pods of a group, ready or as `fields` say (see `make_pod`)."""
    group = f"smol-{wanted.revision}-{ordinal}"
    if is_gated:
        fields |= {"node": None, "is_ready": False}
    found = []
    for rank in range(shape_of(wanted).size):
        pod = make_pod(wanted, ordinal, **fields)
        manifest = member(shape_of(wanted), rank, group, wanted.revision)
        notes = pod["metadata"]["annotations"]
        pod["metadata"] |= copy.deepcopy(manifest["metadata"]) | {"uid": f"uid-{group}-{rank}"}
        pod["metadata"]["annotations"] |= notes
        pod["spec"]["schedulingGates"] = [GATE] if is_gated else []
        found.append(pod)
    return found


def seen(wanted: Wanted, *pods: Object, **fields: Any) -> Observed:
    """The observation of pods whose revision is on record, with the budget as it should be."""
    headcount = Headcount(shape_of(wanted).size)
    budget = stored(wanted.child(BUDGET, headcount), "budget")
    return make_observed(wanted, *pods, budget=budget, recorded=(wanted,), **fields)


def phase(*pods: Object, **fields: Any) -> Phase:
    (group,) = groups(seen(WANTED, *pods, **fields), NOW)
    return group.phase


def noted(observed: Observed, now: datetime = NOW, wanted: Wanted = WANTED) -> Observed:
    """The observation after a plan that only notes failures on the record."""
    todo = plan(wanted, observed, now)
    assert not todo.steps
    (note,) = (action for action in todo.shared if isinstance(action, Patch))
    assert note.purpose is Purpose.NOTE
    (record,) = observed.revisions
    notes = {**(record["metadata"].get("annotations") or {}), **note.body["metadata"]["annotations"]}
    record = {**record, "metadata": {**record["metadata"], "annotations": notes}}
    return replace(observed, revisions=(record,))


def moves(todo: Plan) -> list[tuple[Move, str, str, int]]:
    return [(step.move, step.group.rpartition("-")[2], step.reason, len(step.actions)) for step in todo.steps]


def test_a_group_starts_as_pods_that_no_node_takes_yet() -> None:
    (step,) = plan(WANTED, seen(WANTED), NOW).steps
    assert (step.move, step.reason) == (Move.START, "Wanted")
    pods = [action.manifest for action in step.actions if isinstance(action, Create)]
    group = f"smol-{WANTED.revision}-0"
    assert [pod["metadata"]["name"] for pod in pods] == [f"{group}-{rank}" for rank in range(SIZE)]
    own = [pod["metadata"]["labels"] for pod in pods]
    assert [(found[labels.RANK], found[labels.GROUP_SIZE], found[labels.ROLE]) for found in own] == [
        ("0", "3", "leader"),
        ("1", "3", "worker"),
        ("2", "3", "worker"),
    ]
    assert {found[labels.POD_GROUP] for found in own} == {group}
    assert [labels.SERVING in found for found in own] == [True, False, False]
    for pod in pods:
        assert (pod["spec"]["schedulingGates"], pod["spec"]["restartPolicy"]) == ([GATE], "Never")


@pytest.mark.parametrize("missing", [(0,), (1,), (0, 2), (1, 2)])
def test_a_group_that_a_pass_left_unfinished_is_made_whole(missing: tuple[int, ...]) -> None:
    pods = pods_of(is_gated=True)
    there = [pod for rank, pod in enumerate(pods) if rank not in missing]
    for pod in there:
        pod["metadata"]["annotations"] |= {labels.RESTARTS: "2", labels.FAILED_ON: "node-b=2"}
    (step,) = plan(WANTED, seen(WANTED, *there), NOW).steps
    assert step.move is Move.COMPLETE
    made = [action.manifest["metadata"] for action in step.actions if isinstance(action, Create)]
    assert [found["name"] for found in made] == [pods[rank]["metadata"]["name"] for rank in missing]
    for found in made:
        assert found["annotations"] == {labels.RESTARTS: "2", labels.FAILED_ON: "node-b=2"}


def test_a_whole_group_is_let_go_and_keeps_the_gates_of_others() -> None:
    pods = pods_of(is_gated=True)
    pods[1]["spec"]["schedulingGates"].append({"name": "kueue.x-k8s.io/admission"})
    (step,) = plan(WANTED, seen(WANTED, *pods), NOW).steps
    assert (step.move, step.group) == (Move.ADMIT, f"smol-{WANTED.revision}-0")
    patches = [action for action in step.actions if isinstance(action, Patch)]
    assert [patch.uid for patch in patches] == [pod["metadata"]["uid"] for pod in pods]
    assert [patch.body["spec"]["schedulingGates"] for patch in patches] == [
        [],
        [{"name": "kueue.x-k8s.io/admission"}],
        [],
    ]


def test_those_that_a_pass_did_not_let_go_follow() -> None:
    pods = pods_of(is_gated=True)
    pods[0]["spec"]["schedulingGates"] = []
    assert phase(*pods) is Phase.GATED
    assert moves(plan(WANTED, seen(WANTED, *pods), NOW)) == [(Move.ADMIT, "0", "GroupComplete", 2)]


def test_a_pod_that_is_missing_after_one_was_let_go_fails_the_group() -> None:
    pods = pods_of(is_gated=True)
    pods[0]["spec"]["schedulingGates"] = []
    assert phase(*pods[:2]) is Phase.FAILED
    assert moves(plan(WANTED, noted(seen(WANTED, *pods[:2])), NOW)) == [
        (Move.START, "1", "Replaced", SIZE),
        (Move.REMOVE, "0", "Failed", 2),
    ]


@pytest.mark.parametrize("rank", range(SIZE))
@pytest.mark.parametrize("how", ["ended", "deleted", "gone"])
def test_what_happens_to_one_pod_happens_to_its_group(rank: int, how: str) -> None:
    wanted = with_size(make_wanted(replicas=2), SIZE)
    hurt, other = pods_of(wanted, 0), pods_of(wanted, 1)
    if how == "ended":
        hurt[rank]["status"]["phase"] = "Failed"
    elif how == "deleted":
        hurt[rank]["metadata"]["deletionTimestamp"] = timestamp(ago(1))
    else:
        del hurt[rank]
    num_left = SIZE - (how != "ended")
    observed = seen(wanted, *hurt, *other)
    assert [group.phase for group in groups(observed, NOW)] == [Phase.FAILED, Phase.ANSWERING]
    todo = plan(wanted, noted(observed, wanted=wanted), NOW)
    assert moves(todo) == [(Move.START, "2", "Replaced", SIZE), (Move.REMOVE, "0", "Failed", num_left)]
    assert all(isinstance(action, Delete) for action in todo.steps[1].actions)


def test_a_group_answers_while_its_leader_is_ready_and_all_its_pods_run() -> None:
    assert phase(*pods_of()) is Phase.ANSWERING
    late = pods_of()
    late[2]["status"]["phase"] = "Pending"
    assert phase(*late) is Phase.SILENT
    new = pods_of(is_ready=False)
    assert phase(*new) is Phase.STARTING


def test_a_silent_node_under_any_pod_loses_the_group() -> None:
    pods = pods_of()
    pods[2]["spec"]["nodeName"] = "node-b"
    nodes = {"node-a": Node(), "node-b": Node(is_ready=False, lost_since=ago(30))}
    assert phase(*pods, nodes=nodes) is Phase.LOST


def test_only_the_leader_drains_and_all_go_together() -> None:
    none = with_size(make_wanted(replicas=0), SIZE)
    pods = pods_of()
    todo = plan(none, make_observed(none, *pods, recorded=(WANTED,)), NOW)
    assert moves(todo) == [(Move.DRAIN, "0", "ScaleDown", 1)]
    pods = pods_of(draining_since=ago(30), is_serving=False)
    leader = pods[0]["metadata"]["name"]
    todo = plan(none, make_observed(none, *pods, recorded=(WANTED,), in_flight={leader: 2}), NOW)
    assert not todo.steps
    assert todo.draining == {pods[0]["metadata"]["uid"]}
    todo = plan(none, make_observed(none, *pods, recorded=(WANTED,), in_flight={leader: 0}), NOW)
    assert moves(todo) == [(Move.REMOVE, "0", "Drained", SIZE)]
    todo = plan(none, make_observed(none, *pods[:2], recorded=(WANTED,), in_flight={leader: 2}), NOW)
    assert moves(todo) == [(Move.REMOVE, "0", "GroupBroken", 2)], "a broken group answers nobody"


def test_a_groups_name_is_free_once_no_pod_of_it_is_there() -> None:
    pods = pods_of(deleted_at=ago(1))
    (step,) = plan(WANTED, seen(WANTED, pods[2]), NOW).steps
    assert step.group == f"smol-{WANTED.revision}-1"
    hidden = pods[2]
    hidden["metadata"]["labels"].pop(labels.POD_GROUP)
    (step,) = plan(WANTED, seen(WANTED, hidden), NOW).steps
    assert step.group == f"smol-{WANTED.revision}-1", (
        "whatever its labels say now, it has a name of that group"
    )


def test_a_worker_whose_rank_somebody_changed_is_no_member() -> None:
    pods = pods_of()
    pods[2]["metadata"]["labels"][labels.RANK] = "0"
    assert phase(*pods) is Phase.FAILED


def test_the_size_is_that_of_the_record_whatever_pods_say() -> None:
    pods = pods_of()
    for pod in pods:
        pod["metadata"]["labels"][labels.GROUP_SIZE] = "2"
    assert phase(*pods[:2]) is Phase.FAILED
    observed = make_observed(WANTED, *pods[:2], recorded=())
    assert [group.phase for group in groups(observed, NOW)] == [Phase.ANSWERING], "without one they are asked"


def test_evictions_may_take_one_pod_of_each_group_that_may_be_missing() -> None:
    wanted = with_size(make_wanted(replicas=4, rollout={"maxUnavailable": 2}), SIZE)
    budget = wanted.child(BUDGET, Headcount(SIZE, num_draining=SIZE))
    assert budget is not None
    assert budget["spec"]["minAvailable"] == 4 * SIZE - 2 + SIZE
    roles = {"key": labels.ROLE, "operator": "In", "values": ["leader", "worker"]}
    assert budget["spec"]["selector"]["matchExpressions"] == [roles]


def test_a_record_holds_the_whole_shape() -> None:
    made = make_record(WANTED)["data"]
    assert made["size"] == SIZE
    assert made["workerTemplate"]["spec"] == made["template"]["spec"]
    assert "size" not in make_record(make_wanted())["data"], "records of single pods stay as they were"


def failed_again(num_restarts: int, ordinal: int = 0, created_at: datetime = NOW) -> list[Object]:
    """A group whose second pod ended, after so many others in a row."""
    pods = pods_of(WANTED, ordinal, is_ready=False, num_restarts=num_restarts, created_at=created_at)
    pods[1]["status"]["phase"] = "Failed"
    return pods


def test_a_failed_group_holds_nothing_while_its_successor_waits() -> None:
    observed = noted(seen(WANTED, *failed_again(num_restarts=2)))
    todo = plan(WANTED, observed, NOW)
    assert moves(todo) == [(Move.REMOVE, "0", "Failed", SIZE)]
    gone = replace(observed, pods=())
    waiting = plan(WANTED, gone, NOW + timedelta(seconds=19))
    assert (waiting.actions, waiting.requeue_after_s) == ((), 1.0)
    (step,) = plan(WANTED, gone, NOW + timedelta(seconds=20)).steps
    assert (step.move, step.group) == (Move.START, f"smol-{WANTED.revision}-1"), "the name tells who it was"
    for action in step.actions:
        assert isinstance(action, Create)
        notes = action.manifest["metadata"]["annotations"]
        assert notes[labels.RESTARTS] == "3"
        assert notes[labels.FAILED_ON] == "node-a=1"
        assert notes[labels.SUCCESSOR_OF] == f"smol-{WANTED.revision}-0"


def test_a_past_is_forgotten_once_somebody_follows() -> None:
    observed = replace(noted(seen(WANTED, *failed_again(0))), pods=())
    successor = pods_of(WANTED, 1, is_gated=True)
    for pod in successor:
        pod["metadata"]["annotations"][labels.SUCCESSOR_OF] = f"smol-{WANTED.revision}-0"
    begun = replace(observed, pods=tuple(successor[:1]))
    todo = plan(WANTED, begun, NOW)
    assert moves(todo) == [(Move.COMPLETE, "1", "GroupIncomplete", 2)], "nobody starts it twice"
    (note,) = todo.shared
    assert isinstance(note, Patch)
    assert note.body == {"metadata": {"annotations": {labels.FAILURES: None}}}
    made = [action.manifest for action in todo.steps[0].actions if isinstance(action, Create)]
    assert {pod["metadata"]["annotations"][labels.SUCCESSOR_OF] for pod in made} == {
        f"smol-{WANTED.revision}-0"
    }


def test_a_past_is_forgotten_when_nobody_is_missed() -> None:
    observed = replace(noted(seen(WANTED, *failed_again(0))), pods=())
    none = with_size(make_wanted(replicas=0), SIZE)
    notes = [action for action in plan(none, observed, NOW).shared if isinstance(action, Patch)]
    assert [note.body["metadata"]["annotations"] for note in notes] == [{labels.FAILURES: None}]


def test_a_group_that_keeps_failing_is_given_up_and_says_so() -> None:
    tired = replace(noted(seen(WANTED, *failed_again(MAX_IN_A_ROW - 1))), pods=())
    todo = plan(WANTED, tired, NOW + timedelta(days=1))
    assert (todo.actions, todo.requeue_after_s) == ((), None)
    told = {entry["type"]: entry for entry in status(WANTED, tired, CONFIG, NOW)["conditions"]}
    assert told["Stalled"]["status"] == "True"
    assert told["Stalled"]["reason"] == "RestartBudgetExhausted"
    assert f"smol-{WANTED.revision}-0 failed 10 times in a row" in told["Stalled"]["message"]
    assert labels.RESTARTED_AT in told["Stalled"]["message"]
    two = with_size(make_wanted(replicas=2), SIZE)
    (step,) = plan(two, tired, NOW).steps
    assert (step.move, step.reason) == (Move.START, "Wanted"), "others are not kept from starting"


def test_two_that_fail_at_once_are_noted_at_once() -> None:
    two = with_size(make_wanted(replicas=2), SIZE)
    observed = noted(seen(two, *failed_again(0), *failed_again(1, 1)), wanted=two)
    assert moves(plan(two, observed, NOW)) == [
        (Move.START, "2", "Replaced", SIZE),
        (Move.REMOVE, "0", "Failed", SIZE),
        (Move.REMOVE, "1", "Failed", SIZE),
    ]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "nonsense", "[1]", '[{"group":"g"}]', '[{"group":"g","failures":1,"failedAt":"x"}]'],
)
def test_what_is_no_note_counts_as_none(text: str) -> None:
    observed = seen(WANTED)
    (record,) = observed.revisions
    record = {**record, "metadata": {**record["metadata"], "annotations": {labels.FAILURES: text}}}
    todo = plan(WANTED, replace(observed, revisions=(record,)), NOW)
    assert moves(todo) == [(Move.START, "0", "Wanted", SIZE)]


def test_what_is_left_of_a_group_that_somebody_follows_goes() -> None:
    successor = pods_of(WANTED, 1)
    for pod in successor:
        pod["metadata"]["annotations"][labels.SUCCESSOR_OF] = f"smol-{WANTED.revision}-0"
    two = with_size(make_wanted(replicas=3), SIZE)
    observed = seen(two, *failed_again(0)[1:], *successor)
    assert moves(plan(two, observed, NOW)) == [
        (Move.START, "2", "Wanted", SIZE),
        (Move.START, "3", "Wanted", SIZE),
        (Move.REMOVE, "0", "Failed", 2),
    ]
