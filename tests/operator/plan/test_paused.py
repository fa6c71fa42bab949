"""A paused rollout: nothing is replaced because of its revision, whatever else happens."""

from __future__ import annotations

from typing import Any

from operator_builders import CONFIG, NOW, ago, make_observed, make_pod, make_wanted, shape_of

from stoker_operator.api import labels
from stoker_operator.desired import Wanted
from stoker_operator.observed import Node, Observed
from stoker_operator.plan import Create, Plan, plan
from stoker_operator.status import status

OLD: dict[str, Any] = {"engine": {"maxModelLen": 1024}}
NEW: dict[str, Any] = {"engine": {"maxModelLen": 4096}}


def paused(replicas: int, **spec: Any) -> tuple[Wanted, Wanted]:
    return make_wanted(**OLD), make_wanted(
        **{**NEW, "replicas": replicas, "rollout": {"paused": True}, **spec}
    )


def created(todo: Plan) -> list[str]:
    assert all(isinstance(action, Create) for action in todo.actions)
    return [action.name for action in todo.actions if isinstance(action, Create)]


def steps(wanted: Wanted, observed: Observed) -> list[tuple[str, str, str]]:
    actions = plan(wanted, observed, NOW).actions
    return [(type(action).__name__, getattr(action, "name", ""), action.reason) for action in actions]


def test_pause_in_mid_rollout_neither_finishes_nor_reverts_it() -> None:
    old, new = paused(3)
    for num_new in (1, 2, 3):
        pods = [make_pod(old, ordinal) for ordinal in range(4 - num_new)]
        pods += [make_pod(new, ordinal) for ordinal in range(num_new)]
        observed = make_observed(new, *pods)
        assert plan(new, observed, NOW) == Plan(), f"{num_new} of the new revision"
        found = {entry["type"]: entry for entry in status(new, observed, CONFIG, NOW)["conditions"]}
        assert found["Reconciling"]["status"] == "False"
        assert found["Reconciling"]["reason"] == "Paused"


def test_a_new_pod_that_never_answered_is_left_alone_and_not_counted() -> None:
    old, new = paused(2)
    broken = make_pod(new, is_ready=False)
    assert plan(new, make_observed(new, make_pod(old, 0), make_pod(old, 1), broken), NOW) == Plan()
    # One of the old pods was evicted: it is replaced, although two pods exist.
    todo = plan(new, make_observed(new, make_pod(old, 0), broken), NOW)
    assert created(todo) == [f"smol-{old.revision}-1"]


def test_repair_uses_the_revision_that_answers_most() -> None:
    old, new = paused(3)
    pods = [make_pod(old, 0), make_pod(new, 0), make_pod(new, 1)]
    assert created(plan(new, make_observed(new, *pods[1:]), NOW)) == [f"smol-{new.revision}-2"]
    assert created(plan(new, make_observed(new, *pods[:2]), NOW)) == [f"smol-{old.revision}-1"], (
        "of equals, the one that came first"
    )


def test_the_revision_of_new_pods_does_not_follow_readiness() -> None:
    old, new = paused(4)
    stumbling = [make_pod(old, ordinal, is_ready=False, is_started=True) for ordinal in (0, 1)]
    observed = make_observed(new, *stumbling, make_pod(new))
    assert created(plan(new, observed, NOW)) == [f"smol-{old.revision}-2"]
    lost = [make_pod(old, n, node="node-b", is_ready=False, is_started=True) for n in (0, 1)]
    nodes = {"node-a": Node(), "node-b": Node(is_ready=False)}
    observed = make_observed(new, *lost, make_pod(new, is_ready=False), nodes=nodes)
    assert set(created(plan(new, observed, NOW))) == {f"smol-{old.revision}-{n}" for n in (2, 3, 4, 5)}


def test_when_the_last_pod_terminates_its_revision_is_still_known() -> None:
    old, new = paused(1)
    (create,) = plan(new, make_observed(new, make_pod(old, deleted_at=ago(1))), NOW).actions
    assert isinstance(create, Create)
    assert create.manifest["metadata"]["labels"][labels.REVISION] == old.revision
    assert create.manifest["spec"] == shape_of(old).leader["spec"]
    (create,) = plan(new, make_observed(new), NOW).actions
    assert isinstance(create, Create)
    assert create.manifest["metadata"]["labels"][labels.REVISION] == new.revision


def test_scaled_to_zero_its_revision_is_still_known() -> None:
    old, new = paused(1)
    (create,) = plan(new, make_observed(new, recorded=(old,)), NOW).actions
    assert isinstance(create, Create)
    assert create.manifest["metadata"]["labels"][labels.REVISION] == old.revision
    none = make_wanted(**NEW, replicas=0, rollout={"paused": True})
    assert plan(none, make_observed(none, recorded=(old,)), NOW) == Plan()


def test_scaling_down_takes_what_is_beyond_the_surge_and_then_the_rest() -> None:
    old, new = paused(1)
    pods = [make_pod(old, 0), make_pod(old, 1), make_pod(new, created_at=ago(60))]
    first = steps(new, make_observed(new, *pods))
    assert first == [("Apply", "smol", "Drift"), ("Patch", f"smol-{new.revision}-0", "ScaleDown")]
    second = steps(new, make_observed(new, *pods[:2]))
    assert [step[0] for step in second] == ["Apply", "Patch"]
    gone = make_wanted(**NEW, replicas=2, suspend=True, rollout={"paused": True})
    assert [step[0] for step in steps(gone, make_observed(gone, *pods))] == ["Patch"] * 3


def test_a_leaving_node_is_left() -> None:
    old, new = paused(1)
    nodes = {"node-a": Node(is_leaving=True), "node-b": Node()}
    leaving = make_pod(old, 0)
    assert created(plan(new, make_observed(new, leaving, nodes=nodes), NOW)) == [f"smol-{old.revision}-1"]
    observed = make_observed(new, leaving, make_pod(old, 1, node="node-b"), nodes=nodes)
    assert steps(new, observed)[-1] == ("Patch", f"smol-{old.revision}-0", "NodeLeaving")


def test_unpausing_goes_on_to_the_newest() -> None:
    old, new = make_wanted(**OLD), make_wanted(**NEW, replicas=2)
    observed = make_observed(new, make_pod(old, 0), make_pod(old, 1), make_pod(new))
    assert steps(new, observed)[-1][0::2] == ("Patch", "Outdated")
