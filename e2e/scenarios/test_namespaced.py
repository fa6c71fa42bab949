"""The operator with Roles in one namespace instead of a ClusterRole; and models in a folder of the node."""

from __future__ import annotations

import pytest

import product
from scenarios import manifests, models
from scenarios.clientpod import ClientPod
from scenarios.kube import Kube
from scenarios.models import Model
from scenarios.platform import Platform, temporary_namespace
from scenarios.shelf import Shelf
from scenarios.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

UNSEEN = {"observedGeneration": -1}  # what the CRD says of one that no operator has seen
ACCOUNT = f"system:serviceaccount:{product.NAMESPACE}:{product.RELEASE}"


def may(kube: Kube, verb: str, resource: str, namespace: str) -> bool:
    """Whether the operator's account may do something in a namespace."""
    group, _, plural = resource.rpartition("/")
    wish = {"namespace": namespace, "verb": verb, "group": group, "resource": plural}
    review = {"spec": {"user": ACCOUNT, "resourceAttributes": wish}}
    where = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(kube.request("POST", where, review)["status"]["allowed"])


def assert_answers(model: Model, clients: ClientPod) -> None:
    body = {"model": model.name, "prompt": "a", "max_tokens": 4, "ignore_eos": True}
    answer = clients.ask(f"{model.status()['url']}/v1/completions", body)
    assert answer["status"] == 200, answer


@pytest.mark.long  # tests/operator/reconcile/test_namespaces.py has it on a fake API
def test_operator_of_one_namespace_serves_it_and_leaves_others_alone(
    platform: Platform, shelf: Shelf, clients: ClientPod, namespace: str
) -> None:
    kube = platform.kube
    # Pods that mount a folder of their node are not restricted ones.
    with temporary_namespace(kube, "e2e-ours", pod_security="privileged") as ours:
        platform.upgrade_chart({"namespaces": f"{{{ours}}}", "allowFileSources": "true"})
        try:
            other = models.apply(kube, manifests.modeldeployment("elsewhere", namespace))
            source = f"file://{shelf.folder}/tiny"
            model = models.apply(kube, shelf.modeldeployment("folder", ours, source))
            model.wait_settled()
            assert_answers(model, clients)
            assert (other.status(), other.pods()) == (UNSEEN, [])
            assert kube.get("Service", other.name, namespace) is None
            rights = [("create", "pods"), ("list", "stoker.dev/modeldeployments"), ("patch", "services")]
            assert [may(kube, *right, ours) for right in rights] == [True] * len(rights)
            assert [may(kube, *right, namespace) for right in rights] == [False] * len(rights)
        finally:
            platform.upgrade_chart({})
    eventually("the operator serves every namespace again", other.pods, 60, other.explain)
