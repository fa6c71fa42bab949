"""Who follows a group that failed or got lost: what is handed on, and what is not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from operator_builders import NOW, ago, make_observed, make_pod, make_wanted, shape_of

from stoker_operator.api import labels
from stoker_operator.observed import Node
from stoker_operator.plan import Create, Delete, Plan, plan

Object = dict[str, Any]
WANTED = make_wanted()
LOST = {"node-a": Node(is_ready=False), "node-b": Node()}


def failed(node: str, past: str = "", **fields: Any) -> Object:
    """A pod that failed ten minutes ago, after predecessors with this past."""
    count = sum(int(item.rpartition("=")[2]) for item in past.split(",") if item)
    ended = make_pod(
        WANTED, is_ready=False, phase="Failed", node=node, num_restarts=count, created_at=ago(600), **fields
    )
    if past:
        ended["metadata"]["annotations"][labels.FAILED_ON] = past
    return ended


def created(todo: Plan) -> list[Object]:
    return [dict(action.manifest) for action in todo.actions if isinstance(action, Create)]


def notes_of(pod: Object) -> tuple[str, str]:
    notes = pod["metadata"]["annotations"]
    return notes.get(labels.FAILED_ON, ""), notes.get(labels.AVOIDS, "")


def stuck(avoids: str, age_s: float = 61.0, ordinal: int = 0) -> Object:
    """A pod that has found no node beside those that it is kept off."""
    pod = make_pod(WANTED, ordinal, is_ready=False, phase="Pending", node=None, created_at=ago(age_s))
    del pod["status"]["startTime"]
    pod["metadata"]["annotations"] |= {
        labels.AVOIDS: avoids,
        labels.FAILED_ON: "node-a=2",
        labels.RESTARTS: "2",
    }
    return pod


@pytest.mark.parametrize(
    ("past", "node", "expected"),
    [
        pytest.param("", "node-a", ("node-a=1", ""), id="once-is-chance"),
        pytest.param("node-a=1", "node-a", ("node-a=2", "node-a"), id="twice-is-the-node"),
        pytest.param("node-a=2", "node-b", ("node-a=2,node-b=1", "node-a"), id="bad-node-stays-known"),
        pytest.param(
            "n1=2,n2=2,n3=2,n4=1,n5=1", "n4", ("n1=2,n2=2,n3=2,n5=1,n4=2", "n2,n3,n4"), id="at-most-three"
        ),
        pytest.param("n1=9,n2=1,n3=1,n4=1,n5=1", "n6", ("n2=1,n3=1,n4=1,n5=1,n6=1", ""), id="five-are-known"),
        pytest.param("=2,x=y,node-a=1", "node-a", ("node-a=2", "node-a"), id="what-is-no-note-is-none"),
    ],
)
def test_a_node_is_avoided_after_two_failures_on_it(past: str, node: str, expected: tuple[str, str]) -> None:
    pod = failed(node)
    pod["metadata"]["annotations"] |= {labels.FAILED_ON: past, labels.RESTARTS: "1"}
    (successor,) = created(plan(WANTED, make_observed(WANTED, pod), NOW))
    assert notes_of(successor) == expected


def test_a_pod_that_lived_for_long_leaves_no_past_behind() -> None:
    pod = failed("node-a", "node-a=3")
    pod["status"]["startTime"] = pod["metadata"]["creationTimestamp"] = "2026-03-01T10:00:00Z"
    (successor,) = created(plan(WANTED, make_observed(WANTED, pod), NOW))
    assert notes_of(successor) == ("node-a=1", "")


def test_every_new_pod_keeps_off_the_nodes_that_do_not_report() -> None:
    wanted = make_wanted(replicas=2)
    observed = make_observed(wanted, make_pod(wanted, 0), nodes=LOST)
    assert [notes_of(pod)[1] for pod in created(plan(wanted, observed, NOW))] == ["node-a", "node-a"]


def test_a_lost_successor_waits_as_a_failed_one_does() -> None:
    lost = {"node-a": Node(is_ready=False, lost_since=ago(30))}
    first = make_pod(WANTED, 0, is_ready=False, is_started=True)
    second = make_pod(WANTED, 1, is_ready=False, created_at=ago(5), num_restarts=1)
    todo = plan(WANTED, make_observed(WANTED, first, second, nodes=lost), NOW)
    assert (todo.actions, todo.requeue_after_s) == ((), 5.0)
    todo = plan(WANTED, make_observed(WANTED, first, second, nodes=lost), NOW + timedelta(seconds=5))
    (third,) = created(todo)
    assert third["metadata"]["annotations"][labels.RESTARTS] == "2"
    # The first may answer behind a broken network; the second never did.
    assert [action.name for action in todo.actions if isinstance(action, Delete)] == [
        second["metadata"]["name"]
    ]


def test_a_pod_that_finds_no_other_node_is_replaced_by_one_that_may_go_anywhere() -> None:
    waiting = plan(WANTED, make_observed(WANTED, stuck("node-a", 20.0)), NOW)
    assert (waiting.actions, waiting.requeue_after_s) == ((), 40.0)
    create, delete = plan(WANTED, make_observed(WANTED, stuck("node-a")), NOW).actions
    assert isinstance(create, Create)
    assert isinstance(delete, Delete)
    assert delete.reason == "NoOtherNode"
    successor = dict(create.manifest)
    assert notes_of(successor) == ("node-a=2", "")
    assert successor["metadata"]["annotations"][labels.RESTARTS] == "2"
    assert "affinity" not in successor["spec"]


def test_a_stranded_pod_is_not_replaced_twice() -> None:
    observed = make_observed(WANTED, stuck("node-a"), make_pod(WANTED, 1, is_ready=False, node=None))
    todo = plan(WANTED, observed, NOW)
    assert [type(action) for action in todo.actions] == [Delete]


def test_a_held_revision_does_not_inherit_what_one_pod_keeps_off() -> None:
    pod = failed("node-a", "node-a=1")
    (avoiding,) = created(plan(WANTED, make_observed(WANTED, pod), NOW))
    assert "affinity" in avoiding["spec"]
    serving = make_pod(WANTED)
    serving["spec"]["affinity"] = avoiding["spec"]["affinity"]
    serving["metadata"]["annotations"] |= avoiding["metadata"]["annotations"]
    paused = make_wanted(engine={"maxModelLen": 4096}, replicas=2, rollout={"paused": True})
    (copy,) = created(plan(paused, make_observed(paused, serving, recorded=(WANTED,)), NOW))
    assert notes_of(copy) == ("", "")
    assert copy["spec"] == shape_of(WANTED).leader["spec"]
