"""Accelerators: pods ask for them, one too many says what is missing, and a broken one lets go of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import product
from scenarios import manifests, models
from scenarios.clientpod import ClientPod
from scenarios.kube import Kube, Object, is_true
from scenarios.models import Model
from scenarios.platform import GPUS_PER_NODE, NUM_NODES
from scenarios.repairs import Repair
from scenarios.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

RESOURCE = "nvidia.com/gpu"
NUM_GPUS = NUM_NODES * GPUS_PER_NODE
ONE_EACH = {"resource": RESOURCE, "perPod": 1}
NO_MODEL = f"oci://{product.OPERATOR_IMAGE}"  # an image that is there and holds no weights


def gpus_of(pod: Object) -> str | None:
    (engine,) = (entry for entry in pod["spec"]["containers"] if entry["name"] == "engine")
    limit: str | None = engine["resources"].get("limits", {}).get(RESOURCE)
    return limit


def test_one_pod_too_many_is_unschedulable_and_says_so(kube: Kube, namespace: str) -> None:
    manifest = manifests.modeldeployment("gpus", namespace, accelerator=ONE_EACH, replicas=NUM_GPUS + 1)
    model = models.apply(kube, manifest)
    found = model.wait_reason("Scheduled", "Unschedulable")
    assert found["status"] == "False"
    assert RESOURCE in found["message"]
    pods = model.alive_pods()
    assert [gpus_of(pod) for pod in pods] == ["1"] * (NUM_GPUS + 1)
    placed = [pod["spec"]["nodeName"] for pod in pods if "nodeName" in pod["spec"]]
    assert len(set(placed)) == len(placed) == NUM_GPUS
    assert not is_true(model.observed(), "Ready")

    kube.kubectl("scale", "--namespace", namespace, "mdep/gpus", f"--replicas={NUM_GPUS}")
    model.wait_settled()
    assert is_true(model.observed(), "Scheduled")
    kube.delete("ModelDeployment", model.name, namespace)
    model.wait_gone()


@pytest.fixture
def neighbour(kube: Kube, namespace: str) -> Iterator[Model]:
    """A model that serves on all GPUs but one."""
    manifest = manifests.modeldeployment("neighbour", namespace, accelerator=ONE_EACH, replicas=NUM_GPUS - 1)
    model = models.apply(kube, manifest)
    model.wait_settled()
    yield model
    kube.delete("ModelDeployment", model.name, namespace)
    model.wait_gone()


def lives(model: Model) -> set[tuple[str, int]]:
    """Who its pods are, and how often each has restarted."""
    return {
        (pod["metadata"]["uid"], entry["restartCount"])
        for pod in model.pods()
        for entry in pod["status"]["containerStatuses"]
    }


def test_a_broken_model_on_the_last_gpu_is_repaired_by_an_edit(
    kube: Kube, namespace: str, neighbour: Model, clients: ClientPod, figures: list[str]
) -> None:
    """It never answered and holds what its successor needs: so it goes first, and nobody else does."""
    broken = {"source": NO_MODEL, "servedName": "broken"}
    manifest = manifests.modeldeployment("broken", namespace, model=broken, accelerator=ONE_EACH)
    model = models.apply(kube, manifest)
    model.wait_reason("Ready", "ModelNotFound")
    (pod,) = model.pods()
    holders = [pod, *neighbour.pods()]
    assert [gpus_of(holder) for holder in holders] == ["1"] * NUM_GPUS
    assert all("nodeName" in holder["spec"] for holder in holders)
    others = lives(neighbour)

    repair = Repair(pod["metadata"]["uid"], time.monotonic())
    model.edit(model={"source": f"oci://{manifests.MODEL_IMAGE}"})
    eventually(
        "the repaired model is ready",
        lambda: repair.look(time.monotonic(), model.pods()) and is_true(model.observed(), "Ready"),
        120,
        lambda: (str(repair), model.explain()),
    )
    body = {"model": "broken", "prompt": "Once upon a time", "max_tokens": 4}
    answer = clients.ask(f"{model.status()['url']}/v1/completions", body)
    assert answer["status"] == 200, answer
    repair.answered(time.monotonic())
    figures.append(str(repair))
    assert repair.faults() == []

    model.wait_settled()
    assert lives(neighbour) == others
    (repaired,) = lives(model)
    assert repaired[1] == 0
    kube.delete("ModelDeployment", model.name, namespace)
    model.wait_gone()
