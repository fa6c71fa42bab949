"""Whatever keeps a pod from answering stands in the Ready condition soon after the pod itself shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

import product
from scenarios import manifests
from scenarios.kube import Kube, Object, condition
from scenarios.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

TOLD_WITHIN_S = 5.0
NO_IMAGE = "localhost/no-such-model:1"
NO_MODEL = product.OPERATOR_IMAGE  # an image that is there and holds no weights
LITTLE_MEMORY: Object = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "96Mi"}}
MANY_CPUS: Object = {"requests": {"cpu": "1000"}}


@dataclass(frozen=True)
class Case:
    """A ModelDeployment that cannot serve.

    Attributes:
        spec: what is wrong with it.
        shows: whether a pod's status has the cause.
        reason: what the operator calls it.
        words: what a person must find in the message.
    """

    spec: Mapping[str, Any]
    shows: Callable[[Object], bool]
    reason: str
    words: str


@dataclass(frozen=True)
class Told:
    """What the Ready condition said, and how long after the pod's status at most, in seconds."""

    after_s: float
    message: str


def containers(pod: Object) -> Iterator[Object]:
    """Yield the states of a pod's containers, those before a restart included."""
    for entry in pod.get("status", {}).get("containerStatuses", []):
        yield from (entry.get("state", {}), entry.get("lastState", {}))


def waits_for_image(pod: Object) -> bool:
    reasons = {state.get("waiting", {}).get("reason") for state in containers(pod)}
    return bool(reasons & {"ErrImagePull", "ImagePullBackOff"})


def has_failed(pod: Object) -> bool:
    return any(state.get("terminated", {}).get("exitCode") for state in containers(pod))


def is_unschedulable(pod: Object) -> bool:
    return condition(pod, "PodScheduled").get("reason") == "Unschedulable"


CASES = {
    "no-image": Case(
        {"model": {"source": f"oci://{NO_IMAGE}"}}, waits_for_image, "ImagePullFailed", NO_IMAGE
    ),
    "no-model": Case(
        {"model": {"source": f"oci://{NO_MODEL}"}},
        has_failed,
        "ModelNotFound",
        "/model has neither .safetensors nor .gguf files",
    ),
    # Another program's image: it refuses our arguments, and its last words are all there is to tell.
    "crash": Case(
        {"pod": {"image": product.OPERATOR_IMAGE}}, has_failed, "ContainerCrashed", "No such command 'serve'"
    ),
    "no-memory": Case(
        {"pod": {"resources": LITTLE_MEMORY}}, has_failed, "OutOfMemory", "spec.pod.resources.limits.memory"
    ),
    "no-node": Case({"pod": {"resources": MANY_CPUS}}, is_unschedulable, "Unschedulable", "Insufficient cpu"),
}


class Witness:
    """Looks at pods and ModelDeployments together and notes when each case was first seen where."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._last_look_s = time.monotonic()
        self._shown_s: dict[str, float] = {}
        self._told: dict[str, tuple[float, str]] = {}

    def look(self) -> bool:
        """Look once; whether everything has been seen."""
        # What a pod shows now may have been there since a moment after it was looked at last.
        earliest_s, self._last_look_s = self._last_look_s, time.monotonic()
        for pod in self._kube.get_all("Pod", self._namespace):
            name = pod["metadata"]["labels"]["stoker.dev/deployment"]
            if CASES[name].shows(pod):
                self._shown_s.setdefault(name, earliest_s)
        for model in self._kube.get_all("ModelDeployment", self._namespace):
            name, ready = model["metadata"]["name"], condition(model, "Ready")
            if ready.get("reason") == CASES[name].reason:
                self._told.setdefault(name, (time.monotonic(), ready["message"]))
        return self._shown_s.keys() == self._told.keys() == CASES.keys()

    def seen(self) -> dict[str, Told]:
        """What was seen of each case."""
        return {
            name: Told(told_s - self._shown_s[name], message)
            for name, (told_s, message) in self._told.items()
        }

    def missing(self) -> object:
        """For the failure: what was not seen, and what the conditions say instead."""
        conditions = {
            model["metadata"]["name"]: condition(model, "Ready")
            for model in self._kube.get_all("ModelDeployment", self._namespace)
        }
        return {
            "not shown": sorted(CASES.keys() - self._shown_s.keys()),
            "not told": {name: conditions.get(name) for name in CASES.keys() - self._told.keys()},
        }


@pytest.fixture(scope="module")
def told(kube: Kube, namespace: str, figures: list[str]) -> dict[str, Told]:
    """All cases, applied together."""
    for name, case in CASES.items():
        kube.apply(manifests.modeldeployment(name, namespace, **case.spec))
    witness = Witness(kube, namespace)
    eventually("every cause is shown by its pod and told by its status", witness.look, 120, witness.missing)
    seen = witness.seen()
    delays = ", ".join(f"{name} {found.after_s:.1f} s" for name, found in seen.items())
    figures.append(f"from the pod's status to the Ready condition at most: {delays}")
    return seen


@pytest.mark.parametrize("name", CASES)
def test_cause_is_told_soon_after_the_pod_shows_it(name: str, told: dict[str, Told]) -> None:
    assert CASES[name].words in told[name].message
    assert told[name].after_s <= TOLD_WITHIN_S
