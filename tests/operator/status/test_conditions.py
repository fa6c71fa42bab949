"""The status that each situation ends in: whole conditions where it matters, and times that hold still."""

from __future__ import annotations

from typing import Any

import pytest
from operator_builders import (
    CONFIG,
    NOW,
    ago,
    make_model,
    make_observed,
    make_pod,
    make_wanted,
    stored,
    timestamp,
)

from stoker_operator.api import InvalidSpec, parse, salvage
from stoker_operator.desired import held
from stoker_operator.observed import Node, Observed, Refusal
from stoker_operator.status import events, status

OLD: dict[str, Any] = {"engine": {"maxModelLen": 1024}}
NEW: dict[str, Any] = {"engine": {"maxModelLen": 4096}}
CRASH_LOOP = {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}
IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "r/x:1"'}}


def conditions(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {entry["type"]: (entry["status"], entry["reason"]) for entry in found["conditions"]}


def message(found: dict[str, Any], kind: str) -> str:
    (text,) = (entry["message"] for entry in found["conditions"] if entry["type"] == kind)
    return str(text)


def engine(state: dict[str, Any], **fields: Any) -> dict[str, Any]:
    status = {"name": "engine", "ready": False, "started": False, "restartCount": 0, "state": state, **fields}
    return {"containerStatuses": [status]}


def ended(message: str = "", exit_code: int = 1, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": exit_code, "reason": reason, "message": message}}


def of_pod(**fields: Any) -> dict[str, Any]:
    wanted = make_wanted()
    return status(wanted, make_observed(wanted, make_pod(wanted, is_ready=False, **fields)), CONFIG, NOW)


def test_all_replicas_answer() -> None:
    wanted = make_wanted(replicas=2)
    found = status(wanted, make_observed(wanted, make_pod(wanted, 0), make_pod(wanted, 1)), CONFIG, NOW)
    assert conditions(found) == {
        "Ready": ("True", "Ready"),
        "Reconciling": ("False", "AsExpected"),
        "Stalled": ("False", "AsExpected"),
        "Scheduled": ("True", "Scheduled"),
        "ModelLoaded": ("True", "Loaded"),
    }
    assert {key: value for key, value in found.items() if key != "conditions"} == {
        "observedGeneration": 1,
        "url": "http://smol.team.svc.cluster.local",
        "revision": wanted.revision,
        "replicas": 2,
        "readyReplicas": 2,
        "updatedReplicas": 2,
        "promisedReplicas": 2,
        "selector": "stoker.dev/deployment=smol,stoker.dev/role=leader,stoker.dev/serving=true",
    }


def test_ready_speaks_of_the_current_generation_only() -> None:
    old, new = make_wanted(**OLD), make_wanted(**NEW)
    observed = make_observed(new, make_pod(old), make_pod(new, is_ready=False, phase="Pending"))
    found = status(new, observed, CONFIG, NOW)
    assert conditions(found)["Ready"] == ("False", "CreatingContainer")
    assert conditions(found)["Reconciling"][0] == "True"
    assert "1 of an older revision still serves" in message(found, "Ready")


@pytest.mark.parametrize(
    ("pod", "reason", "is_stalled", "text"),
    [
        pytest.param({"status": engine(IMAGE)}, "ImagePullFailed", True, "r/x:1", id="image"),
        pytest.param(
            {"status": engine(ended('{"reason": "ModelNotFound", "message": "no such repository"}', 3))},
            "ModelNotFound",
            True,
            "no such repository",
            id="model-not-found",
        ),
        pytest.param(
            {"status": engine(ended(exit_code=137, reason="OOMKilled"))},
            "OutOfMemory",
            True,
            "spec.pod.resources.limits.memory",
            id="killed-for-memory",
        ),
        pytest.param(
            {"status": engine(ended("loading\nSegmentation fault\n", 139))},
            "ContainerCrashed",
            False,
            "exit status 139: Segmentation fault",
            id="one-crash",
        ),
        pytest.param(
            {"status": engine({"waiting": CRASH_LOOP}, restartCount=2, lastState=ended("bye", 0))},
            "ContainerCrashed",
            True,
            "exit status 0: bye",
            id="ends-without-an-error-again-and-again",
        ),
        pytest.param(
            {"status": engine({"running": {}}, restartCount=2, lastState=ended("boom"))},
            "ContainerCrashed",
            True,
            "exit status 1: boom",
            id="crashes-again-and-again",
        ),
        pytest.param(
            {
                "phase": "Failed",
                "status": {"reason": "Evicted", "message": "low on disk", "containerStatuses": []},
            },
            "PodFailed",
            False,
            "low on disk",
            id="evicted",
        ),
        pytest.param(
            {
                "phase": "Failed",
                "num_restarts": 1,
                "status": {"reason": "UnexpectedAdmissionError", "containerStatuses": []},
            },
            "PodFailed",
            True,
            "UnexpectedAdmissionError",
            id="fails-again",
        ),
        pytest.param({"status": engine({"running": {}})}, "LoadingModel", False, "loads", id="loading"),
    ],
)
def test_first_cause_that_a_person_can_act_on(
    pod: dict[str, Any], reason: str, is_stalled: bool, text: str
) -> None:
    found = of_pod(**pod)
    assert conditions(found)["Ready"] == ("False", reason)
    assert conditions(found)["Stalled"][0] == str(is_stalled)
    assert conditions(found)["Reconciling"][0] == str(not is_stalled)
    assert text in message(found, "Ready")


def test_unschedulable_names_the_resource() -> None:
    unplaced = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
    }
    found = of_pod(node=None, phase="Pending", status={"conditions": [unplaced], "containerStatuses": []})
    assert conditions(found)["Scheduled"] == ("False", "Unschedulable")
    assert conditions(found)["Ready"] == ("False", "Unschedulable")
    assert "nvidia.com/gpu" in message(found, "Ready")


def test_a_cause_that_stays_is_told_before_one_that_passes() -> None:
    wanted = make_wanted(replicas=2)
    pods = [
        make_pod(wanted, 0, is_ready=False, status=engine({"running": {}})),
        make_pod(wanted, 1, is_ready=False, status=engine(IMAGE)),
    ]
    assert (
        conditions(status(wanted, make_observed(wanted, *pods), CONFIG, NOW))["Ready"][1] == "ImagePullFailed"
    )


def test_a_pod_that_stumbles_does_not_hide_one_that_cannot_start() -> None:
    wanted = make_wanted(replicas=3)
    stumbling = {"running": {"startedAt": timestamp(ago(600))}}
    changed = {"type": "Ready", "status": "False", "lastTransitionTime": timestamp(ago(60))}
    status_of_it = {**engine(stumbling, started=True), "conditions": [changed]}
    pods = [
        make_pod(wanted, 0, is_ready=False, status=status_of_it),
        make_pod(wanted, 1, is_ready=False, status=engine(IMAGE)),
        make_pod(wanted, 2, is_ready=False, status=engine({"running": {}})),
    ]

    def reason(*chosen: dict[str, Any]) -> str:
        return conditions(status(wanted, make_observed(wanted, *chosen), CONFIG, NOW))["Ready"][1]

    assert reason(*pods) == "ImagePullFailed"
    assert reason(pods[2], pods[0]) == "NotReady"


def test_silent_node_is_named() -> None:
    wanted = make_wanted()
    observed = make_observed(wanted, make_pod(wanted, is_ready=False), nodes={"node-a": Node(is_ready=False)})
    found = status(wanted, observed, CONFIG, NOW)
    assert conditions(found)["Ready"] == ("False", "NodeNotReady")
    assert "node-a" in message(found, "Ready")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param({"suspend": True}, ("True", "Suspended"), id="suspended"),
        pytest.param({"replicas": 0}, ("True", "ScaledToZero"), id="scaled-to-zero"),
    ],
)
def test_no_pods_are_wanted(spec: dict[str, Any], expected: tuple[str, str]) -> None:
    wanted = make_wanted(**spec)
    found = conditions(status(wanted, make_observed(wanted), CONFIG, NOW))
    assert found["Ready"] == expected
    assert found["Reconciling"][0] == found["Stalled"][0] == "False"


def test_suspending_is_in_progress_until_the_pods_are_gone() -> None:
    suspended, pod = make_wanted(suspend=True), make_pod(make_wanted(), is_serving=False)
    found = conditions(status(suspended, make_observed(suspended, pod), CONFIG, NOW))
    assert (found["Ready"], found["Reconciling"]) == (("True", "Suspended"), ("True", "RemovingPods"))
    found = conditions(status(suspended, make_observed(suspended), CONFIG, NOW))
    assert (found["Ready"], found["Reconciling"]) == (("True", "Suspended"), ("False", "AsExpected"))


def test_paused_rollout_is_neither_reconciling_nor_stalled() -> None:
    old, new = make_wanted(**OLD), make_wanted(**NEW, rollout={"paused": True})
    found = conditions(status(new, make_observed(new, make_pod(old)), CONFIG, NOW))
    assert found["Ready"] == ("False", "Paused")
    assert found["Reconciling"] == ("False", "Paused")
    assert found["Stalled"][0] == "False"


def test_what_the_api_server_refuses_stalls() -> None:
    wanted = make_wanted()
    observed = Observed(make_model(), refusals=(Refusal("pod smol-0", "exceeded quota: gpus"),))
    found = status(wanted, observed, CONFIG, NOW)
    assert conditions(found)["Stalled"] == ("True", "Refused")
    assert "exceeded quota: gpus" in message(found, "Stalled")


def test_name_conflict_stalls() -> None:
    wanted = make_wanted()
    service = stored(wanted.child("Service"), "service")
    service["metadata"]["ownerReferences"][0] |= {"uid": "uid-other", "name": "other"}
    found = conditions(status(wanted, make_observed(wanted, service=service), CONFIG, NOW))
    assert found["Stalled"] == ("True", "NameConflict")


def test_old_pods_on_their_way_out_keep_it_reconciling() -> None:
    old, new = make_wanted(**OLD), make_wanted(**NEW)
    leaving = make_pod(old, is_serving=False, draining_since=ago(5))
    found = conditions(status(new, make_observed(new, make_pod(new), leaving), CONFIG, NOW))
    assert found["Ready"][0] == "True"
    assert found["Reconciling"] == ("True", "RemovingPods")


def test_time_of_a_condition_moves_only_with_its_status() -> None:
    wanted = make_wanted()
    before = status(wanted, make_observed(wanted), CONFIG, ago(60))
    ready = status(
        wanted, make_observed(wanted, make_pod(wanted), model=make_model(status=before)), CONFIG, NOW
    )
    moved = {entry["type"]: entry["lastTransitionTime"] == timestamp(NOW) for entry in ready["conditions"]}
    assert moved == {
        "Ready": True,
        "Reconciling": True,
        "Stalled": False,
        "Scheduled": True,
        "ModelLoaded": True,
    }
    again = status(
        wanted, make_observed(wanted, make_pod(wanted), model=make_model(status=ready)), CONFIG, ago(-60)
    )
    assert again == ready


def test_invalid_spec_stalls_and_counts_what_serves() -> None:
    wanted = make_wanted(replicas=2)
    before = status(wanted, make_observed(wanted, make_pod(wanted)), CONFIG, ago(60))
    model = make_model(status=before, generation=2, replicas=2, model={"source": "file:///models/m"})
    invalid = held(parse(model), InvalidSpec("spec.model.source", "file:// is not allowed here"), 2)
    observed = make_observed(wanted, make_pod(wanted, 0), make_pod(wanted, 1, is_ready=False), model=model)
    found = status(invalid, observed, CONFIG, NOW)
    assert found["observedGeneration"] == 2
    assert conditions(found)["Stalled"] == ("True", "InvalidSpec")
    assert conditions(found)["Ready"] == ("False", "InvalidSpec")
    assert conditions(found)["Reconciling"] == ("False", "InvalidSpec")
    assert conditions(found)["ModelLoaded"] == ("True", "Loaded")
    assert message(found, "Ready") == "spec.model.source: file:// is not allowed here"
    counts = (found["replicas"], found["readyReplicas"], found["updatedReplicas"])
    assert (found["url"], counts) == (before["url"], (2, 1, 0))


def test_invalid_spec_without_pods_promises_no_address() -> None:
    model = make_model(engine={"dtype": "float128"})
    invalid = held(salvage(model), InvalidSpec("spec.engine.dtype", "no such type"), 0)
    found = status(invalid, Observed(model), CONFIG, NOW)
    assert "url" not in found
    assert "revision" not in found
    assert (found["replicas"], found["readyReplicas"]) == (0, 0)


def test_events_tell_a_change_once() -> None:
    wanted = make_wanted()
    broken = status(
        wanted, make_observed(wanted, make_pod(wanted, is_ready=False, status=engine(IMAGE))), CONFIG, NOW
    )
    (event,) = events({}, broken, ())
    assert (event.type, event.reason) == ("Warning", "ImagePullFailed")
    assert events(broken, broken, ()) == []
    ready = status(wanted, make_observed(wanted, make_pod(wanted)), CONFIG, NOW)
    assert [(event.type, event.reason) for event in events(broken, ready, ())] == [("Normal", "Ready")]
