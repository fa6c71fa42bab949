"""What status and Events say of drains that nobody can watch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from operator_builders import CONFIG, NOW, ago, make_observed, make_pod, make_wanted

from stoker_operator.observed import Observed, Reading
from stoker_operator.status import events, status

BROKEN = "Connection refused"


def draining(silent_s: float | None, *, num_pods: int = 1, **pod: Any) -> Observed:
    """Observe pods that drain and that could not be asked for so long."""
    wanted = make_wanted()
    pods = [
        make_pod(wanted, ordinal, **{"is_serving": False, "draining_since": ago(9), **pod})
        for ordinal in range(num_pods)
    ]
    reading = Reading(NOW, 0) if silent_s is None else Reading(NOW, None, BROKEN, ago(silent_s))
    observed = make_observed(wanted, *pods, make_pod(wanted, 9))
    return replace(observed, readings={pod["metadata"]["uid"]: reading for pod in pods})


def condition(observed: Observed, kind: str = "DrainUnobserved") -> dict[str, Any] | None:
    found = status(make_wanted(), observed, CONFIG, NOW)["conditions"]
    return next((entry for entry in found if entry["type"] == kind), None)


def test_a_pod_that_cannot_be_asked_is_told_of() -> None:
    found = condition(draining(3))
    assert found is not None
    assert (found["status"], found["reason"]) == ("True", "DrainUnobserved")
    for part in (f"pod smol-{make_wanted().revision}-0 cannot", "port 8000", BROKEN, "120 s", "NetworkPolic"):
        assert part in found["message"]


def test_several_are_counted() -> None:
    found = condition(draining(60, num_pods=3))
    assert found is not None
    assert "and 2 more" in found["message"]


@pytest.mark.parametrize(
    "observed",
    [
        pytest.param(draining(None), id="it-answers"),
        pytest.param(draining(2.9), id="for-a-moment"),
        pytest.param(draining(60, is_ready=False, is_started=False), id="its-engine-does-not-run"),
        pytest.param(draining(60, deleted_at=ago(1)), id="it-goes-already"),
        pytest.param(draining(60, is_serving=True, draining_since=None), id="it-serves"),
    ],
)
def test_what_is_as_it_should_be_is_not_told(observed: Observed) -> None:
    assert condition(observed) is None


def test_one_warning_says_it() -> None:
    wanted = make_wanted()
    before = status(wanted, draining(None), CONFIG, NOW)
    after = status(wanted, draining(3), CONFIG, NOW)
    (event,) = [event for event in events(before, after, ()) if event.reason == "DrainUnobserved"]
    assert event.type == "Warning"
    assert BROKEN in event.note
    assert not [event for event in events(after, after, ()) if event.reason == "DrainUnobserved"]
    assert not [event for event in events(after, before, ()) if event.reason == "DrainUnobserved"]


def test_that_a_draining_engine_is_not_ready_any_more_is_no_cause() -> None:
    wanted = make_wanted()
    leaving = make_pod(wanted, 0, is_serving=False, draining_since=ago(9), is_ready=False, is_started=True)
    loading = make_pod(wanted, 1, is_ready=False)
    found = condition(make_observed(wanted, leaving, loading), "Ready")
    assert found is not None
    assert found["reason"] == "LoadingModel"
