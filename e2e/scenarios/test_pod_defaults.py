"""What runtime pods get by default: an authority of one's own, and users that the platform gives."""

from __future__ import annotations

import copy

import pytest

import product
from scenarios import manifests, models
from scenarios.kube import Object, is_true, path
from scenarios.platform import Platform
from scenarios.shelf import REPOSITORY_ID, TOKEN, Shelf
from scenarios.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420, func_only=True)]

# As OpenShift gives them to the pods of a namespace.
RANGE_USER = 1_000_660_000
AS_ASSIGNED: Object = {
    "runAsUser": RANGE_USER,
    "runAsGroup": 0,
    "fsGroup": RANGE_USER,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def object_of(kind: str, name: str, namespace: str, **content: Object) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, **content}


@pytest.mark.long  # most of it a kubelet's back-off
def test_a_hub_of_a_private_authority_is_trusted_and_no_pod_restarts(
    platform: Platform, shelf: Shelf, namespace: str
) -> None:
    kube = platform.kube
    kube.apply(object_of("Secret", "hub", namespace, stringData={"token": TOKEN}))
    before = models.apply(kube, manifests.modeldeployment("before", namespace))
    before.wait_settled()
    pods = [pod["metadata"]["uid"] for pod in before.pods()]
    settings = {
        "runtimePods.caBundle.configMap": "trusted",
        "runtimePods.env.HF_ENDPOINT": shelf.tls_url,
        "runtimePods.env.NO_PROXY": ".svc",
    }
    platform.upgrade_chart(settings)
    try:
        manifest = shelf.modeldeployment("behind", namespace, f"hf://{REPOSITORY_ID}@main", secretName="hub")
        del manifest["spec"]["pod"]["env"]
        model = models.apply(kube, manifest)
        # Nobody has brought the certificates into this namespace yet: the pod waits for them, and it is said.
        told = model.wait_reason("Ready", "CreateFailed", timeout_s=150)
        assert 'configmap "trusted" not found' in told["message"]
        waiting = [pod["metadata"]["uid"] for pod in model.pods()]
        kube.apply(object_of("ConfigMap", "trusted", namespace, data={"ca.crt": shelf.authority}))
        model.wait_settled(timeout_s=200)
        assert [pod["metadata"]["uid"] for pod in model.pods()] == waiting
    finally:
        platform.upgrade_chart({})
    before.wait_settled()
    assert [pod["metadata"]["uid"] for pod in before.pods()] == pods


def test_images_run_as_a_user_of_a_range(platform: Platform, namespace: str) -> None:
    """The pod that the operator makes, with the user and groups that a platform would have given it."""
    kube = platform.kube
    model = models.apply(kube, manifests.modeldeployment("ranged", namespace))
    model.wait_settled()
    (made,) = model.pods()
    spec = copy.deepcopy(made["spec"])
    del spec["nodeName"]
    spec["securityContext"] = AS_ASSIGNED
    kube.request("POST", path("Pod", namespace), object_of("Pod", "ranged", namespace, spec=spec))
    ends = {"name": "operator", "image": product.OPERATOR_IMAGE, "args": ["--version"]}
    ends["securityContext"] = spec["containers"][0]["securityContext"]
    asked = {"securityContext": AS_ASSIGNED, "restartPolicy": "Never", "containers": [ends]}
    kube.request("POST", path("Pod", namespace), object_of("Pod", "version", namespace, spec=asked))

    def found(name: str) -> Object:
        return kube.get("Pod", name, namespace) or {}

    eventually(
        "the runtime is ready", lambda: is_true(found("ranged"), "Ready"), 120, lambda: found("ranged")
    )
    eventually(
        "the operator's image has run",
        lambda: found("version")["status"].get("phase") == "Succeeded",
        60,
        lambda: found("version"),
    )
