"""Who sets spec.replicas, by the managedFields of a real API server."""

from __future__ import annotations

import json

import pytest

from scenarios.kube import Kube, Object, path
from scenarios.manifests import modeldeployment
from stoker_operator.api.managers import Contest, contest
from stoker_operator.reconcile.trim import trim_model

pytestmark = pytest.mark.integration

NAMESPACE = "default"


def manifest(name: str, replicas: int | None) -> Object:
    """Return a manifest with a number of replicas or without one."""
    made = modeldeployment(name, NAMESPACE)
    del made["spec"]["replicas"]
    return made if replicas is None else {**made, "spec": {**made["spec"], "replicas": replicas}}


def scale(kube: Kube, name: str, replicas: int) -> None:
    """Write through /scale as an autoscaler does."""
    where = f"{path('ModelDeployment', NAMESPACE, name)}/scale"
    patch = {"spec": {"replicas": replicas}}
    content_type = "application/merge-patch+json"
    kube.request("PATCH", where, patch, content_type=content_type, fieldManager="autoscaler")


def seen(kube: Kube, name: str) -> tuple[int, Contest | None]:
    """Return the number that stands there, and who contests it, which a cache has to tell as well."""
    found = kube.get("ModelDeployment", name, NAMESPACE)
    assert found is not None
    assert contest(trim_model(found)) == contest(found)
    return found["spec"]["replicas"], contest(found)


def test_kubectl_apply_and_a_scaler_are_told_apart(kube: Kube) -> None:
    name = "noted"
    kube.kubectl("apply", "--filename", "-", text=json.dumps(manifest(name, 1)))
    assert seen(kube, name) == (1, None)
    scale(kube, name, 2)
    assert seen(kube, name) == (2, Contest("kubectl-client-side-apply", "autoscaler"))
    kube.kubectl("apply", "--filename", "-", text=json.dumps(manifest(name, 1)))
    assert seen(kube, name) == (1, None), "the last one has it alone"
    kube.delete("ModelDeployment", name, NAMESPACE)


def test_a_default_is_nobodys_wish(kube: Kube) -> None:
    name = "defaulted"
    kube.kubectl("apply", "--filename", "-", text=json.dumps(manifest(name, None)))
    scale(kube, name, 2)
    assert seen(kube, name) == (2, None)
    kube.kubectl("apply", "--filename", "-", text=json.dumps(manifest(name, None)))
    assert seen(kube, name) == (2, None)
    kube.delete("ModelDeployment", name, NAMESPACE)


def test_a_manifest_that_the_server_applies_shares_the_number_that_it_says(kube: Kube) -> None:
    name = "shared"
    kube.apply(manifest(name, 1), field_manager="gitops")
    scale(kube, name, 2)
    assert seen(kube, name) == (2, None), "what was applied before shows no more"
    kube.apply(manifest(name, 2), field_manager="gitops")
    assert seen(kube, name) == (2, Contest("gitops", "autoscaler"))
    kube.apply(manifest(name, None), field_manager="gitops")
    assert seen(kube, name) == (2, None)
    kube.delete("ModelDeployment", name, NAMESPACE)
