"""Accelerators: pods ask for them, and one too many says what is missing."""

from __future__ import annotations

import pytest

from scenarios import manifests, models
from scenarios.kube import Kube, Object, is_true
from scenarios.platform import GPUS_PER_NODE, NUM_NODES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

RESOURCE = "nvidia.com/gpu"
NUM_GPUS = NUM_NODES * GPUS_PER_NODE


def gpus_of(pod: Object) -> str | None:
    (engine,) = (entry for entry in pod["spec"]["containers"] if entry["name"] == "engine")
    limit: str | None = engine["resources"].get("limits", {}).get(RESOURCE)
    return limit


def test_one_pod_too_many_is_unschedulable_and_says_so(kube: Kube, namespace: str) -> None:
    one_each = {"resource": RESOURCE, "perPod": 1}
    manifest = manifests.modeldeployment("gpus", namespace, accelerator=one_each, replicas=NUM_GPUS + 1)
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
