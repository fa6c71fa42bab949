"""The bar of a repaired model, on made-up pods: what holds it, what breaks it, what it says."""

from __future__ import annotations

import pytest

from scenarios.kube import Object
from scenarios.repairs import ORDER, Repair

EDITED_S = 100.0
OLD = "old"


def pod(uid: str, node: str | None = None, phase: str = "Pending", **state: Object) -> Object:
    entries = [{"name": "engine", "state": state}] if state else []
    status: Object = {"phase": phase, "containerStatuses": entries}
    return {"metadata": {"uid": uid}, "spec": {"nodeName": node} if node else {}, "status": status}


def ready(found: Object) -> Object:
    found["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    return found


CRASHED = pod(OLD, "n0", "Running", waiting={"reason": "CrashLoopBackOff"})
GONE = (
    [CRASHED],
    [CRASHED, pod("new")],
    [pod("new")],
    [pod("new", "n0")],
    [pod("new", "n0", "Running", running={})],
    [ready(pod("new", "n0", "Running", running={}))],
)
# Its GPU is free as soon as it has failed: the scheduler does not wait for the object to go.
FAILED = (
    [CRASHED],
    [pod(OLD, "n0", "Failed", terminated={}), pod("new")],
    [pod(OLD, "n0", "Failed", terminated={}), pod("new", "n0")],
    *GONE[4:],
)


def seen(looks: tuple[list[Object], ...], answered_s: float = 20.0) -> Repair:
    repair = Repair(OLD, EDITED_S)
    found = [repair.look(EDITED_S + index, pods) for index, pods in enumerate(looks)]
    assert found == [False] * (len(looks) - 1) + [True]
    repair.answered(EDITED_S + answered_s)
    return repair


@pytest.mark.parametrize("looks", [GONE, FAILED], ids=["gone", "failed"])
def test_a_repair_in_order_and_time_has_no_fault(looks: tuple[list[Object], ...]) -> None:
    repair = seen(looks)
    assert repair.faults() == []
    assert [name for name in ORDER if name in str(repair)] == list(ORDER)


def test_its_figures_are_since_the_edit_and_since_the_start() -> None:
    assert str(seen(GONE)) == (
        "a broken model on a full GPU, after the edit: let go 2.0 s, placed 3.0 s, started 4.0 s, "
        "ready 5.0 s, answered 20.0 s; 16.0 s from its start"
    )


def test_a_late_answer_breaks_the_bar() -> None:
    assert seen(GONE, answered_s=34.0).faults() == []
    (fault,) = seen(GONE, answered_s=34.1).faults()
    assert fault.startswith("over 30 s: ")


def test_a_new_pod_that_had_a_gpu_beside_the_broken_one_was_on_no_full_cluster() -> None:
    looks = ([CRASHED, pod("new", "n1")], *GONE[3:])
    (fault,) = seen(looks).faults()
    assert fault.startswith("not in this order: ")


def test_what_was_never_seen_is_named() -> None:
    repair = Repair(OLD, EDITED_S)
    repair.look(EDITED_S, [CRASHED, pod("new")])
    assert repair.faults() == [f"never seen: {name}" for name in ORDER]
