"""The check of manifests finds what an API server would refuse."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from check_manifests import CRD, check, closed, documents, modeldeployment_schema

SCHEMA = modeldeployment_schema(yaml.safe_load(CRD.read_text()))


def modeldeployment(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "stoker.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "m"},
        "spec": {"model": {"source": "hf://org/name"}} | spec,
    }


def pod(**container: Any) -> dict[str, Any]:
    containers = [{"name": "c", "image": "i"} | container]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}}


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        pytest.param(modeldeployment(), None, id="good-modeldeployment"),
        pytest.param(modeldeployment(replicas="two"), "spec.replicas", id="wrong-type"),
        pytest.param(modeldeployment(replica=2), "'replica' was unexpected", id="unknown-field"),
        pytest.param(modeldeployment(engine={"dtype": "int3"}), "spec.engine.dtype", id="not-in-the-enum"),
        pytest.param(modeldeployment(scheduling={"affinity": {"nodeAffinity": {}}}), None, id="open-field"),
        pytest.param(pod(), None, id="good-pod"),
        pytest.param(pod(imagePullPolice="Always"), "imagePullPolice", id="unknown-pod-field"),
        pytest.param({"apiVersion": "v9", "kind": "Pod"}, "Couldn't find schema", id="unknown-version"),
        pytest.param({"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor"}, None, id="foreign"),
    ],
)
def test_problems_name_the_field(manifest: dict[str, Any], problem: str | None) -> None:
    found = check(manifest, SCHEMA)
    if problem is None:
        assert found is None
    else:
        assert found is not None
        assert problem in found


def test_closing_a_schema_leaves_maps_open() -> None:
    schema = {"type": "object", "properties": {"labels": {"type": "object", "additionalProperties": {}}}}
    assert closed(schema) == {
        "type": "object",
        "additionalProperties": False,
        "properties": {"labels": {"type": "object", "additionalProperties": {}}},
    }


def test_empty_documents_are_skipped() -> None:
    assert list(documents("---\n---\na: 1\n---\n# nothing\n")) == [{"a": 1}]
