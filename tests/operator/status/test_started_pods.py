"""Between a start and the first readiness nothing is wrong: only a pod that was ready can be NotReady."""

from __future__ import annotations

from typing import Any

import pytest

from stoker_operator.profiles import STOKER
from stoker_operator.status.causes import pod_state


def started_pod(ready_since: str, started_at: str) -> dict[str, Any]:
    """A pod whose startup probe has passed and whose Ready condition is False since some time."""
    engine = {
        "name": "engine",
        "started": True,
        "ready": False,
        "state": {"running": {"startedAt": started_at}},
    }
    conditions = [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Ready", "status": "False", "lastTransitionTime": ready_since},
    ]
    return {
        "metadata": {"name": "m-1"},
        "spec": {"nodeName": "n"},
        "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [engine]},
    }


@pytest.mark.parametrize(
    ("ready_since", "reason"),
    [
        pytest.param("2026-01-01T00:00:00Z", "LoadingModel", id="not-ready-since-before-the-start"),
        pytest.param("2026-01-01T00:00:05Z", "LoadingModel", id="not-ready-since-the-start"),
        pytest.param("2026-01-01T00:10:00Z", "NotReady", id="was-ready-meanwhile"),
    ],
)
def test_only_a_pod_that_was_ready_is_not_ready(ready_since: str, reason: str) -> None:
    state = pod_state(started_pod(ready_since, started_at="2026-01-01T00:00:05Z"), STOKER)
    assert state.cause is not None
    assert state.cause.reason == reason
