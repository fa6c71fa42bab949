"""Thirty kinds of bad ModelDeployment, each refused at apply or stalled with a message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from operator_process import running_operator

from cluster.integration import ControlPlane
from scenarios.files import BAD_MODELDEPLOYMENTS
from scenarios.kube import Kube, Object, Refused, path
from scenarios.manifests import namespace_manifest
from scenarios.models import Model
from scenarios.waiting import eventually

pytestmark = pytest.mark.integration

BAD: list[dict[str, Any]] = yaml.safe_load(BAD_MODELDEPLOYMENTS.read_text())
NAMESPACE = "bad-specs"


@pytest.fixture(scope="module")
def namespace(kube: Kube) -> str:
    kube.apply(namespace_manifest(NAMESPACE, "privileged"))
    return NAMESPACE


@pytest.fixture(scope="module")
def operator(plane: ControlPlane, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with running_operator(plane, tmp_path_factory.mktemp("operator") / "log"):
        yield


def bad(where: str) -> list[Any]:
    return [pytest.param(entry, id=entry["name"]) for entry in BAD if entry["where"] == where]


def manifest_of(entry: dict[str, Any], namespace: str) -> Object:
    manifest: Object = entry["manifest"]
    return {**manifest, "metadata": {**manifest.get("metadata", {}), "namespace": namespace}}


def test_thirty_kinds_of_bad_modeldeployment_are_listed() -> None:
    assert len({entry["name"] for entry in BAD}) == len(BAD) >= 30


@pytest.mark.parametrize("entry", bad("apply"))
def test_bad_modeldeployment_is_refused_at_apply(entry: dict[str, Any], kube: Kube, namespace: str) -> None:
    # Created, not applied: to a value of the wrong type a server-side apply answers 500.
    where, options = path("ModelDeployment", namespace), {"dryRun": "All", "fieldValidation": "Strict"}
    with pytest.raises(Refused) as refused:
        kube.request("POST", where, manifest_of(entry, namespace), **options)
    assert 400 <= refused.value.status < 500
    assert entry["message"] in refused.value.message


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("entry", bad("condition"))
def test_bad_modeldeployment_stalls_and_says_why(entry: dict[str, Any], kube: Kube, namespace: str) -> None:
    manifest = manifest_of(entry, namespace)
    kube.apply(manifest)
    model = Model(kube, namespace, manifest["metadata"]["name"])

    def stalled() -> bool:
        return model.condition("Stalled").get("status") == "True"

    eventually(f"{entry['name']} is Stalled", stalled, 20, model.explain)
    assert entry["message"] in model.condition("Stalled")["message"]
    assert model.condition("Ready")["status"] == "False"
    assert model.pods() == []
    kube.delete("ModelDeployment", model.name, namespace)
