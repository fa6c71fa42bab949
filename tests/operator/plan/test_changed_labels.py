"""Labels and annotations of pods are anybody's to change: what a plan makes of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from operator_builders import CONFIG, NOW, ago, make_observed, make_pod, make_wanted, timestamp

from stoker_operator.api import labels
from stoker_operator.observed import Reading
from stoker_operator.plan import Create, Delete, Patch, name_conflict, plan
from stoker_operator.plan.successors import MAX_BACKOFF_S
from stoker_operator.status import status


def relabelled(pod: dict[str, Any], key: str, value: str | None) -> dict[str, Any]:
    pod["metadata"]["labels"].pop(key)
    if value is not None:
        pod["metadata"]["labels"][key] = value
    return pod


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(labels.DEPLOYMENT, None, id="deployment-removed"),
        pytest.param(labels.ROLE, None, id="role-removed"),
        pytest.param(labels.ROLE, "mascot", id="role-changed"),
    ],
)
def test_pod_that_the_service_cannot_select_is_replaced_and_left_alone(key: str, value: str | None) -> None:
    wanted = make_wanted()
    hidden = relabelled(make_pod(wanted, 0), key, value)
    observed = make_observed(wanted, hidden)
    (create,) = plan(wanted, observed, NOW).actions
    assert isinstance(create, Create)
    assert create.name == f"smol-{wanted.revision}-1"
    assert name_conflict(wanted, observed) is None
    found = status(wanted, observed, CONFIG, NOW)
    assert (found["replicas"], found["readyReplicas"]) == (0, 0)
    found = status(wanted, make_observed(wanted, hidden, make_pod(wanted, 1)), CONFIG, NOW)
    assert {entry["type"]: entry["status"] for entry in found["conditions"]} == {
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
        "Scheduled": "True",
        "ModelLoaded": "True",
    }


@pytest.mark.parametrize("value", [None, "false", "maybe"])
def test_pod_that_somebody_took_out_of_the_service_drains_from_now_on(value: str | None) -> None:
    wanted = make_wanted()
    pod = relabelled(make_pod(wanted, 0, created_at=ago(3600)), labels.SERVING, value)
    observed = make_observed(wanted, pod, make_pod(wanted, 1), in_flight={pod["metadata"]["name"]: 0})
    stop = plan(wanted, observed, NOW).actions[-1]
    assert isinstance(stop, Patch)
    assert (stop.name, stop.reason) == (pod["metadata"]["name"], "LabelChanged")
    pod["metadata"]["annotations"] |= stop.body["metadata"]["annotations"]
    pod["metadata"]["labels"] |= stop.body["metadata"]["labels"]
    observed = make_observed(wanted, pod, make_pod(wanted, 1), in_flight={pod["metadata"]["name"]: 0})
    assert plan(wanted, observed, NOW + timedelta(seconds=1)).actions == ()
    later = NOW + timedelta(seconds=4)
    assert plan(wanted, observed, later).actions == ()
    observed = replace(observed, readings={pod["metadata"]["uid"]: Reading(later, 0)})
    (delete,) = plan(wanted, observed, later).actions
    assert isinstance(delete, Delete)


@pytest.mark.parametrize("text", ["yesterday", "", "2026-03-01", "2026-03-01T12:00:00", "-1", "9" * 5000])
def test_annotation_that_cannot_be_read_counts_as_absent(text: str) -> None:
    wanted = make_wanted()
    failed = make_pod(wanted, 0, is_ready=False, phase="Failed", created_at=ago(1))
    failed["metadata"]["annotations"][labels.RESTARTS] = text
    draining = make_pod(wanted, 1, is_serving=False)
    draining["metadata"]["annotations"][labels.DRAINING_SINCE] = text
    actions = plan(wanted, make_observed(wanted, failed, draining), NOW).actions
    assert [type(action) for action in actions] == [Create, Patch, Delete]


def test_so_many_failures_that_doubling_overflows_wait_five_minutes() -> None:
    wanted = make_wanted()
    failed = make_pod(wanted, 0, is_ready=False, phase="Failed", created_at=ago(1), num_restarts=999_999)
    todo = plan(wanted, make_observed(wanted, failed), NOW)
    assert (todo.actions, todo.requeue_after_s) == ((), MAX_BACKOFF_S - 1)


def test_a_drain_takes_as_long_as_its_own_pod_may() -> None:
    patient = make_wanted(pod={"terminationGracePeriodSeconds": 600})
    hasty = make_wanted(pod={"terminationGracePeriodSeconds": 15})
    pod = make_pod(patient, 0, is_serving=False, draining_since=ago(60))
    observed = make_observed(hasty, pod, make_pod(hasty), in_flight={pod["metadata"]["name"]: 3})
    assert plan(hasty, observed, NOW).actions == ()
    pod["metadata"]["annotations"][labels.DRAINING_SINCE] = timestamp(ago(601))
    (delete,) = plan(hasty, observed, NOW).actions
    assert (type(delete), delete.reason) == (Delete, "DrainDeadline")
