"""The deadline of a rollout: what counts as a step, and when nothing is due."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from operator_builders import CONFIG, NOW, ago, make_observed, make_pod, make_wanted, timestamp

from stoker_operator.plan import plan
from stoker_operator.plan.groups import groups
from stoker_operator.plan.progress import deadline_at
from stoker_operator.status import status

Object = dict[str, Any]
ROLLOUT = {"progressDeadlineSeconds": 600}
WANTED = make_wanted(rollout=ROLLOUT)
OLD = make_wanted(engine={"maxModelLen": 1024}, rollout=ROLLOUT)


def loading(made_s_ago: float, **fields: Any) -> Object:
    return make_pod(WANTED, is_ready=False, created_at=ago(made_s_ago), **fields)


def due(*pods: Object, **spec: Any) -> datetime | None:
    wanted = make_wanted(**{"rollout": ROLLOUT, **spec})
    return deadline_at(groups(make_observed(wanted, *pods), NOW), wanted)


def stalled(*pods: Object) -> tuple[str, str, str]:
    found = status(WANTED, make_observed(WANTED, *pods), CONFIG, NOW)
    (condition,) = (entry for entry in found["conditions"] if entry["type"] == "Stalled")
    return condition["status"], condition["reason"], condition["message"]


def test_a_pod_that_loads_for_longer_than_the_deadline_stalls_and_older_ones_stay() -> None:
    old = make_pod(OLD)
    assert stalled(old, loading(599))[0] == "False"
    text = "no pod has come further for 600 s (spec.rollout.progressDeadlineSeconds)"
    state, reason, message = stalled(old, loading(600))
    assert (state, reason) == ("True", "ProgressDeadlineExceeded")
    assert message.startswith(text)
    assert "loads the model" in message
    assert plan(WANTED, make_observed(WANTED, old, loading(600)), NOW).actions == ()


def test_somebody_looks_when_the_deadline_comes() -> None:
    todo = plan(WANTED, make_observed(WANTED, make_pod(OLD), loading(500)), NOW)
    assert todo.requeue_after_s == 100.0
    assert plan(WANTED, make_observed(WANTED, make_pod(OLD), loading(600)), NOW).requeue_after_s is None


def test_each_step_of_a_pod_begins_anew() -> None:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": timestamp(ago(50))}
    ready = {"type": "Ready", "status": "False", "lastTransitionTime": timestamp(ago(20))}
    pod = loading(900, status={"conditions": [scheduled, ready], "startTime": timestamp(ago(20))})
    assert due(pod) == NOW + timedelta(seconds=550), "what became false is no step"


@pytest.mark.parametrize(
    ("pods", "spec"),
    [
        pytest.param([make_pod(WANTED)], {}, id="enough-answer"),
        pytest.param([make_pod(WANTED, is_ready=False, is_started=True)], {}, id="it-answered-once"),
        pytest.param([make_pod(OLD)], {}, id="none-is-there-yet"),
        pytest.param([loading(900)], {"rollout": {**ROLLOUT, "paused": True}}, id="paused"),
        pytest.param([loading(900, num_restarts=2)], {}, id="a-successor-is-no-step"),
        pytest.param([], {"suspend": True}, id="suspended"),
    ],
)
def test_nothing_is_due(pods: list[Object], spec: dict[str, Any]) -> None:
    assert due(*pods, **spec) is None
