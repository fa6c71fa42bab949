"""What a plan does in the situations that users know, one by one; the properties test covers the mixes."""

from __future__ import annotations

from typing import Any

import pytest
from operator_builders import (
    NOW,
    ago,
    make_model,
    make_observed,
    make_pod,
    make_record,
    make_wanted,
    shape_of,
    stored,
    timestamp,
    wanted_of,
)

from stoker_operator.api import labels
from stoker_operator.desired.children import BUDGET, Headcount
from stoker_operator.observed import Node, Observed
from stoker_operator.plan import (
    Apply,
    Create,
    Delete,
    Patch,
    Plan,
    name_conflict,
    plan,
)

OLD: dict[str, Any] = {"engine": {"maxModelLen": 1024}}
MIDDLE: dict[str, Any] = {"engine": {"maxModelLen": 2048}}
NEW: dict[str, Any] = {"engine": {"maxModelLen": 4096}}


def name(wanted: Any, ordinal: int = 0) -> str:
    return f"smol-{wanted.revision}-{ordinal}"


def steps(todo: Plan) -> list[tuple[str, str, str]]:
    return [(type(action).__name__, getattr(action, "name", ""), action.reason) for action in todo.actions]


BUDGET_MAKES_UP = ("Apply", "smol", "Drift")


def test_budget_makes_up_for_pods_that_drain_until_they_are_gone() -> None:
    wanted = make_wanted(replicas=1)
    old = [make_pod(wanted, ordinal, is_serving=False, draining_since=ago(9)) for ordinal in (0, 1)]
    old[1]["metadata"]["deletionTimestamp"] = ago(1)
    serving = make_pod(wanted, 2)
    min_available = []
    for others in (old, old[1:], []):
        observed = make_observed(
            wanted, serving, *others, budget=stored(wanted.child(BUDGET, Headcount(num_draining=7)), "budget")
        )
        apply = plan(wanted, observed, NOW).actions[0]
        assert isinstance(apply, Apply)
        min_available.append(apply.manifest["spec"]["minAvailable"])
    assert min_available == [3, 2, 1]


def test_record_and_service_come_before_the_pods() -> None:
    wanted = make_wanted(replicas=2)
    first = plan(wanted, Observed(make_model()), NOW)
    assert [type(action) for action in first.actions] == [Create, Apply, Apply]
    todo = plan(wanted, Observed(make_model(), revisions=(make_record(wanted),)), NOW)
    assert [type(action) for action in todo.actions] == [Apply, Apply, Create, Create]
    assert [action.name for action in todo.actions if isinstance(action, Create)] == [
        name(wanted, 0),
        name(wanted, 1),
    ]


def test_nothing_is_done_when_all_is_as_wanted() -> None:
    wanted = make_wanted(replicas=2)
    assert plan(wanted, make_observed(wanted, make_pod(wanted, 0), make_pod(wanted, 1)), NOW) == Plan()


def test_new_pod_takes_the_lowest_name_that_nobody_has() -> None:
    wanted = make_wanted(replicas=2)
    terminating = make_pod(wanted, 0, deleted_at=ago(1))
    todo = plan(wanted, make_observed(wanted, terminating, make_pod(wanted, 1)), NOW)
    assert steps(todo) == [("Create", name(wanted, 2), "Wanted")]


def test_new_revision_comes_up_before_the_old_one_stops_serving() -> None:
    old, new = make_wanted(**OLD), make_wanted(**NEW)
    first = plan(new, make_observed(new, make_pod(old)), NOW)
    assert steps(first) == [("Create", name(new), "Wanted")]
    starting = plan(new, make_observed(new, make_pod(old), make_pod(new, is_ready=False)), NOW)
    assert steps(starting) == []
    ready = plan(new, make_observed(new, make_pod(old), make_pod(new)), NOW)
    assert steps(ready) == [BUDGET_MAKES_UP, ("Patch", name(old), "Outdated")]


def test_broken_revision_keeps_an_old_pod_that_stumbles() -> None:
    old, new = make_wanted(**OLD), make_wanted(**NEW)
    observed = make_observed(
        new, make_pod(old, is_ready=False, is_started=True), make_pod(new, is_ready=False)
    )
    assert steps(plan(new, observed, NOW)) == []


def reloading(wanted: Any, **fields: Any) -> dict[str, Any]:
    """A pod that was ready for most of its life, and whose container was started again a minute ago."""
    changed = {"type": "Ready", "status": "False", "lastTransitionTime": timestamp(ago(60))}
    return make_pod(wanted, is_ready=False, status={"conditions": [changed]}, **fields)


def test_an_old_pod_that_never_answered_goes_at_once() -> None:
    old, new = make_wanted(**OLD), make_wanted(**NEW)
    stuck = make_pod(new, is_ready=False, phase="Pending", node=None)
    observed = make_observed(new, make_pod(old, is_ready=False), stuck)
    assert steps(plan(new, observed, NOW)) == [("Delete", name(old), "Outdated")]


@pytest.mark.parametrize("is_broken", [True, False], ids=["new one is broken", "new one is not there yet"])
def test_an_old_pod_that_answered_yesterday_and_loads_again_is_kept(is_broken: bool) -> None:
    old, new = make_wanted(**OLD), make_wanted(**NEW)
    pods = [reloading(old), make_pod(new, is_ready=False)] if is_broken else [reloading(old)]
    todo = plan(new, make_observed(new, *pods), NOW)
    assert "Delete" not in [step[0] for step in steps(todo)]


def test_an_old_pod_without_any_sign_of_its_past_is_kept() -> None:
    old, new = make_wanted(**OLD), make_wanted(**NEW)
    unsaid = make_pod(old, is_ready=False, status={"conditions": [{"type": "Ready", "status": "False"}]})
    assert steps(plan(new, make_observed(new, unsaid, make_pod(new, is_ready=False)), NOW)) == []


def test_a_pod_that_loads_on_a_cordoned_node_may_yet_serve_there() -> None:
    wanted, nodes = make_wanted(), {"node-a": Node(is_leaving=True)}
    pods = (
        make_pod(wanted, 0, is_ready=False),
        make_pod(wanted, 1, is_ready=False, phase="Pending", node=None),
    )
    assert steps(plan(wanted, make_observed(wanted, *pods, nodes=nodes), NOW)) == []


def test_a_held_rollout_keeps_an_old_pod_that_never_answered() -> None:
    old, paused = make_wanted(**OLD), make_wanted(**NEW, rollout={"paused": True})
    observed = make_observed(paused, make_pod(old, is_ready=False), model=make_model())
    assert "Delete" not in [step[0] for step in steps(plan(paused, observed, NOW))]


def test_second_edit_removes_the_broken_middle_and_keeps_the_old() -> None:
    old, middle, new = make_wanted(**OLD), make_wanted(**MIDDLE), make_wanted(**NEW)
    observed = make_observed(new, make_pod(old), make_pod(middle, is_ready=False))
    assert steps(plan(new, observed, NOW)) == [("Delete", name(middle), "Outdated")]


def test_without_surge_one_pod_leaves_first() -> None:
    rollout: dict[str, Any] = {"rollout": {"maxSurge": 0, "maxUnavailable": 1}, "replicas": 2}
    old, new = make_wanted(**OLD, **rollout), make_wanted(**NEW, **rollout)
    todo = plan(new, make_observed(new, make_pod(old, 0), make_pod(old, 1)), NOW)
    assert [step[0] for step in steps(todo)] == ["Apply", "Patch"]


def test_paused_rollout_scales_with_the_revision_that_serves() -> None:
    old = make_wanted(**OLD)
    paused = make_wanted(**NEW, replicas=2, rollout={"paused": True})
    serving = make_pod(old)
    serving["spec"] |= {"nodeName": "node-a", "priority": 0, "ephemeralContainers": [{"name": "debug"}]}
    (create,) = plan(paused, make_observed(paused, serving, recorded=(old,)), NOW).actions
    assert isinstance(create, Create)
    assert create.name == name(old, 1)
    assert create.manifest["metadata"]["labels"][labels.REVISION] == old.revision
    assert create.manifest["spec"] == shape_of(old).leader["spec"]


def test_pod_on_a_cordoned_node_is_replaced_before_it_leaves() -> None:
    wanted, nodes = make_wanted(), {"node-a": Node(is_leaving=True), "node-b": Node()}
    leaving = make_pod(wanted, 0)
    assert steps(plan(wanted, make_observed(wanted, leaving, nodes=nodes), NOW)) == [
        ("Create", name(wanted, 1), "Wanted")
    ]
    successor = make_pod(wanted, 1, node="node-b")
    assert steps(plan(wanted, make_observed(wanted, leaving, successor, nodes=nodes), NOW)) == [
        BUDGET_MAKES_UP,
        ("Patch", name(wanted, 0), "NodeLeaving"),
    ]


def test_pods_of_silent_nodes_stay_until_others_answer() -> None:
    wanted = make_wanted(replicas=2)
    nodes = {"node-a": Node(is_ready=False), "node-b": Node()}
    lost = [make_pod(wanted, ordinal, is_ready=False, is_started=True) for ordinal in (0, 1)]
    todo = plan(wanted, make_observed(wanted, *lost, nodes=nodes), NOW)
    assert [step[:2] for step in steps(todo)] == [("Create", name(wanted, n)) for n in (2, 3)]
    others = [make_pod(wanted, ordinal, node="node-b") for ordinal in (2, 3)]
    todo = plan(wanted, make_observed(wanted, *lost, *others, nodes=nodes), NOW)
    assert steps(todo) == [("Delete", name(wanted, n), "NodeNotReady") for n in (0, 1)]


def test_scale_down_takes_unready_pods_first() -> None:
    wanted = make_wanted(replicas=1)
    observed = make_observed(wanted, make_pod(wanted, 0, is_ready=False), make_pod(wanted, 1))
    assert steps(plan(wanted, observed, NOW)) == [("Delete", name(wanted, 0), "ScaleDown")]


def test_scale_down_takes_pods_without_a_node_before_those_that_load() -> None:
    wanted = make_wanted(replicas=2)
    loading = [make_pod(wanted, ordinal, is_ready=False) for ordinal in (0, 1)]
    unscheduled = make_pod(wanted, 2, is_ready=False, phase="Pending", node=None)
    observed = make_observed(wanted, *loading, unscheduled)
    assert ("Delete", name(wanted, 2), "ScaleDown") in steps(plan(wanted, observed, NOW))
    assert len([step for step in steps(plan(wanted, observed, NOW)) if step[0] == "Delete"]) == 1


@pytest.mark.parametrize(
    ("since", "in_flight", "expected"),
    [
        pytest.param(ago(1), 0, None, id="nodes-may-not-know-yet"),
        pytest.param(ago(10), 2, None, id="requests-in-flight"),
        pytest.param(ago(10), None, None, id="cannot-be-asked"),
        pytest.param(ago(10), 0, "Drained", id="empty"),
        pytest.param(ago(121), 2, "DrainDeadline", id="deadline"),
    ],
)
def test_draining_pod_goes_once_it_is_empty_or_late(since: Any, in_flight: int | None, expected: str) -> None:
    wanted = make_wanted()
    draining = make_pod(wanted, 0, is_serving=False, draining_since=since)
    observed = make_observed(wanted, draining, make_pod(wanted, 1), in_flight={name(wanted): in_flight})
    todo = plan(wanted, observed, NOW)
    assert todo.draining == {draining["metadata"]["uid"]}
    assert steps(todo) == ([] if expected is None else [("Delete", name(wanted), expected)])
    assert (todo.requeue_after_s is None) == (expected is not None)


@pytest.mark.parametrize(
    ("since", "in_flight", "wait_s"),
    [
        pytest.param(ago(1), None, 2.0, id="nodes-may-not-know-yet"),
        pytest.param(ago(10), 2, 110.0, id="requests-in-flight-until-a-reading-says-otherwise"),
        pytest.param(ago(10), None, 110.0, id="cannot-be-asked"),
        pytest.param(ago(118), None, 2.0, id="cannot-be-asked-until-the-deadline"),
    ],
)
def test_draining_pod_waits_for_its_deadline_or_for_a_reading(
    since: Any, in_flight: int | None, wait_s: float
) -> None:
    wanted = make_wanted()
    draining = make_pod(wanted, 0, is_serving=False, draining_since=since)
    observed = make_observed(wanted, draining, make_pod(wanted, 1), in_flight={name(wanted): in_flight})
    assert plan(wanted, observed, NOW).requeue_after_s == wait_s


def test_draining_pod_on_a_silent_node_is_not_asked() -> None:
    wanted, nodes = make_wanted(), {"node-a": Node(is_ready=False), "node-b": Node()}
    draining = make_pod(wanted, 0, is_serving=False, draining_since=ago(10))
    observed = make_observed(wanted, draining, make_pod(wanted, 1, node="node-b"), nodes=nodes)
    todo = plan(wanted, observed, NOW)
    assert (todo.actions, todo.draining) == ((), frozenset())


@pytest.mark.parametrize(
    ("num_restarts", "ended_s_ago", "is_due"),
    [
        pytest.param(0, 0, True, id="first-failure-at-once"),
        pytest.param(1, 9, False, id="second-waits-ten-seconds"),
        pytest.param(1, 10, True, id="second-is-due"),
        pytest.param(3, 39, False, id="fourth-waits-forty"),
        pytest.param(20, 299, False, id="never-more-than-five-minutes"),
        pytest.param(20, 300, True, id="five-minutes-are-over"),
    ],
)
def test_failed_pod_is_replaced_after_its_back_off(num_restarts: int, ended_s_ago: int, is_due: bool) -> None:
    wanted = make_wanted()
    failed = make_pod(
        wanted, is_ready=False, phase="Failed", created_at=ago(ended_s_ago), num_restarts=num_restarts
    )
    todo = plan(wanted, make_observed(wanted, failed), NOW)
    if is_due:
        assert [step[0] for step in steps(todo)] == ["Create", "Delete"]
        (create,) = (action for action in todo.actions if isinstance(action, Create))
        assert create.manifest["metadata"]["annotations"][labels.RESTARTS] == str(num_restarts + 1)
    else:
        assert todo.actions == ()
        assert todo.requeue_after_s is not None
        assert 0 < todo.requeue_after_s <= 40


def test_failures_of_an_old_revision_do_not_delay_the_new_one() -> None:
    old, new = make_wanted(**OLD), make_wanted(**NEW)
    failed = make_pod(old, is_ready=False, phase="Failed", created_at=ago(1), num_restarts=5)
    assert [step[:2] for step in steps(plan(new, make_observed(new, failed), NOW))] == [
        ("Create", name(new)),
        ("Delete", name(old)),
    ]


def test_suspending_drains_all_pods_and_drops_the_budget_but_not_the_service() -> None:
    running, suspended = make_wanted(), make_wanted(suspend=True)
    assert running.child(BUDGET) is not None
    observed = make_observed(suspended, make_pod(running), budget=stored(running.child(BUDGET), "budget"))
    actions = plan(suspended, observed, NOW).actions
    assert [type(action) for action in actions] == [Delete, Patch]


def test_drift_of_the_service_is_mended_at_its_path() -> None:
    wanted = make_wanted()
    service = stored(wanted.child("Service"), "service")
    service["spec"] |= {"clusterIP": "10.0.0.9", "selector": {"app": "other"}}
    (action,) = plan(wanted, make_observed(wanted, make_pod(wanted), service=service), NOW).actions
    assert isinstance(action, Apply)
    assert all(path.startswith("spec.selector.") for path in action.drift)


def test_what_belongs_to_somebody_else_is_not_touched() -> None:
    wanted = make_wanted()
    service = stored(wanted.child("Service"), "service")
    service["metadata"]["ownerReferences"][0] |= {"kind": "Other", "uid": "uid-other"}
    pod = make_pod(wanted)
    pod["metadata"]["ownerReferences"][0] |= {"kind": "ReplicaSet", "uid": "uid-other"}
    observed = make_observed(wanted, pod, service=service)
    assert steps(plan(wanted, observed, NOW)) == [("Create", name(wanted, 1), "Wanted")]
    assert (
        name_conflict(wanted, observed) == "Service smol exists and does not belong to this ModelDeployment"
    )


def test_what_a_predecessor_left_behind_is_waited_for() -> None:
    wanted = make_wanted()
    service = stored(wanted.child("Service"), "service")
    service["metadata"]["ownerReferences"][0]["uid"] = "uid-earlier"
    observed = make_observed(wanted, make_pod(wanted), service=service)
    assert plan(wanted, observed, NOW).actions == ()
    assert name_conflict(wanted, observed) is None


def test_a_model_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    stored_model = make_model()
    stored_model["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    assert plan(wanted_of(stored_model), Observed(stored_model), NOW) == Plan()


def test_deletions_name_the_uid_that_was_seen() -> None:
    wanted = make_wanted(replicas=0)
    pod = make_pod(wanted, is_ready=False)
    (delete,) = (
        action
        for action in plan(wanted, make_observed(wanted, pod), NOW).actions
        if isinstance(action, Delete)
    )
    assert delete.uid == pod["metadata"]["uid"]
