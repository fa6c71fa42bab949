"""How often the same kind of write may be tried, whatever it says."""

import pytest

from stoker_operator.api.labels import APPLIED_HASH, FAILURES, LET_GO_AT, REVISION
from stoker_operator.observed import Failure, Refusal
from stoker_operator.plan.actions import Apply, Create, Patch, Purpose
from stoker_operator.reconcile.pace import MAX_FRUITLESS, MAX_IN_SUM, MINUTE_S, Pace
from stoker_operator.status import Change

KEY = ("default", "m")
NO = Refusal("it", "no")
BUSY = Failure("it", "500")


def budget(content: int) -> Apply:
    metadata = {"name": "m", "annotations": {APPLIED_HASH: str(content)}}
    return Apply({"kind": "PodDisruptionBudget", "metadata": metadata}, ("spec",), "Drift")


def pod(revision: str) -> Create:
    return Create({"kind": "Pod", "metadata": {"name": "m-1", "labels": {REVISION: revision}}}, "Missing")


def test_a_child_that_changes_with_each_pod_is_refused_a_few_times_a_minute() -> None:
    now_s, times_s = 0.0, []
    pace = Pace(lambda: now_s)
    for step in range(600):
        now_s = step / 10
        if not pace.wait_s(KEY, budget(step)):
            pace.failed(KEY, budget(step), NO)
            times_s.append(now_s)
    assert len(times_s) == MAX_FRUITLESS


def test_what_a_user_corrects_is_tried_at_once_however_often_it_was_refused_before() -> None:
    now_s = 0.0
    pace = Pace(lambda: now_s)
    for _ in range(2 * MAX_FRUITLESS):
        pace.failed(KEY, pod("one"), NO)
    assert pace.wait_s(KEY, pod("one")) > 0
    assert pace.wait_s(KEY, pod("other")) == 0


def test_pods_and_a_status_that_fail_at_once_share_a_minute() -> None:
    now_s, times_s = 0.0, []
    pace = Pace(lambda: now_s)
    for step in range(6000):
        now_s = step / 50
        if not pace.wait_s(KEY, pod("one")):
            pace.failed(KEY, pod("one"), BUSY)
            times_s.append(now_s)
        if not pace.status_wait_s(KEY, Change.PROGRESS, f"words {step}"):
            assert pace.status_failed(KEY, f"words {step}", BUSY) > 0
            times_s.append(now_s)
    assert len(times_s) > MAX_IN_SUM
    for last_s in times_s:
        assert sum(last_s - MINUTE_S < at_s <= last_s for at_s in times_s) <= MAX_IN_SUM


@pytest.mark.parametrize(
    ("purpose", "note"), [(Purpose.ADMIT, LET_GO_AT), (Purpose.NOTE, FAILURES)], ids=["admit", "note"]
)
def test_a_patch_that_tells_the_time_backs_off_like_any_other(purpose: Purpose, note: str) -> None:
    now_s, times_s = 0.0, []
    pace = Pace(lambda: now_s)
    for step in range(600):
        now_s = step / 10
        text = f"at 2026-03-01T12:00:{step // 10:02}.{step % 10}00Z"
        patch = Patch("Pod", "m-1", "uid", {"metadata": {"annotations": {note: text}}}, purpose, "x")
        if not pace.wait_s(KEY, patch):
            pace.failed(KEY, patch, NO)
            times_s.append(now_s)
            assert pace.trouble(KEY, patch) == NO
    assert len(times_s) <= MAX_FRUITLESS
