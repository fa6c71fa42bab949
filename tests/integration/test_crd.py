"""The generated CRD on a real API server: what it serves, what it fills in, what it refuses."""

from __future__ import annotations

import json

import pytest
import yaml

from scenarios.files import CRD_FILE
from scenarios.kube import Kube, Object, condition, is_true, path
from scenarios.manifests import modeldeployment
from scenarios.waiting import eventually

pytestmark = pytest.mark.integration

NAMESPACE = "default"


def leaves(schema: Object, where: str = "spec") -> list[str]:
    """Paths of the fields that the schema spells out."""
    found = []
    for name, field in schema.get("properties", {}).items():
        found += [f"{where}.{name}", *leaves(field, f"{where}.{name}")]
    return found


def test_the_structural_schema_has_no_complaint(kube: Kube) -> None:
    crd = kube.get("CustomResourceDefinition", "modeldeployments.stoker.dev")
    assert condition(crd, "NonStructuralSchema") == {}
    assert condition(crd, "NamesAccepted")["status"] == "True"


def test_kubectl_explains_every_field(kube: Kube) -> None:
    crd = yaml.safe_load(CRD_FILE.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    fields = leaves(schema)
    assert "spec.model.source" in fields
    top = [field for field in fields if field.count(".") == 1]
    for field in ["spec", *top]:
        said = kube.kubectl("explain", f"mdep.{field}")
        assert "DESCRIPTION:" in said
        assert "<empty>" not in said, f"{field} has no description"


def test_short_name_category_and_columns_are_served(kube: Kube) -> None:
    kube.apply(modeldeployment("columns", NAMESPACE))
    header, row = kube.kubectl("get", "mdep", "columns", "--namespace", NAMESPACE).splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "REPLICAS", "AVAILABLE", "URL", "AGE"]
    assert row.split()[0] == "columns"
    assert "columns" in kube.kubectl("get", "stoker", "--namespace", NAMESPACE)
    kube.delete("ModelDeployment", "columns", NAMESPACE)


def test_the_scale_subresource_reads_and_writes_replicas_only(kube: Kube) -> None:
    kube.apply(modeldeployment("scaled", NAMESPACE, replicas=1))
    where = f"{path('ModelDeployment', NAMESPACE, 'scaled')}/scale"
    assert kube.request("GET", where)["spec"] == {"replicas": 1}
    kube.kubectl("scale", "mdep/scaled", "--namespace", NAMESPACE, "--replicas=4")
    observed = kube.get("ModelDeployment", "scaled", NAMESPACE)
    assert observed is not None
    assert observed["spec"]["replicas"] == 4
    assert observed["metadata"]["generation"] == 2
    kube.delete("ModelDeployment", "scaled", NAMESPACE)


def test_status_is_written_through_its_subresource_alone(kube: Kube) -> None:
    applied = kube.apply({**modeldeployment("status", NAMESPACE), "status": {"replicas": 9}}, dry_run=True)
    assert "replicas" not in applied.get("status", {})


def test_defaults_are_filled_in_by_the_server(kube: Kube) -> None:
    bare: Object = {
        "apiVersion": "stoker.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "bare", "namespace": NAMESPACE},
        "spec": {"model": {"source": "hf://Qwen/Qwen3-8B"}},
    }
    spec = kube.apply(bare, dry_run=True)["spec"]
    assert spec["accelerator"] == {"resource": "nvidia.com/gpu", "perPod": 1}
    rollout = {"maxSurge": 1, "maxUnavailable": 0, "paused": False, "progressDeadlineSeconds": 3600}
    assert spec["rollout"] == rollout
    assert spec["service"]["port"] == 80
    assert spec["suspend"] is False
    json.dumps(spec)


def test_another_projects_kind_of_that_name_stands_beside_ours(kube: Kube) -> None:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": "ModelDeployment", "plural": "modeldeployments", "singular": "modeldeployment"}
    other: Object = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "modeldeployments.aaa.example"},
        "spec": {"group": "aaa.example", "scope": "Namespaced", "names": names, "versions": [version]},
    }
    where = ("beside", "--namespace", NAMESPACE, "--output=name")
    try:
        kube.apply(other)
        eventually(
            "the other kind is served",
            lambda: is_true(kube.get("CustomResourceDefinition", other["metadata"]["name"]), "Established"),
            30,
        )
        kube.apply(modeldeployment("beside", NAMESPACE))
        for name in ("mdep", "modeldeployments.stoker.dev"):
            assert kube.kubectl("get", name, *where).strip() == "modeldeployment.stoker.dev/beside"
    finally:
        kube.delete("ModelDeployment", "beside", NAMESPACE)
        kube.delete("CustomResourceDefinition", other["metadata"]["name"])
