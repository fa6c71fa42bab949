"""The operator, as a process of its own, against a real API server that has no kubelet and no controllers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import ControlPlane
from scenarios.audit import AuditLog
from scenarios.files import BAD_MODELDEPLOYMENTS
from scenarios.kube import Kube, Object, Refused
from scenarios.manifests import modeldeployment, namespace_manifest
from scenarios.models import Model
from scenarios.waiting import eventually

pytestmark = pytest.mark.integration

BAD: list[dict[str, Any]] = yaml.safe_load(BAD_MODELDEPLOYMENTS.read_text())
NAMESPACE = "operator-tests"


@contextmanager
def running_operator(plane: ControlPlane, log: Path) -> Iterator[None]:
    """Run the operator; it must still run in the end and leave with status 0 when told to."""
    env = {**os.environ, "KUBECONFIG": str(plane.kubeconfig), "STOKER_RUNTIME_IMAGE": "localhost/runtime:1"}
    with log.open("ab") as output:
        command = [sys.executable, "-m", "stoker_operator", "run"]
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        yield
        assert process.poll() is None, log.read_text()[-4000:]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, log.read_text()[-4000:]
    finally:
        process.kill()
        process.wait(timeout=30)


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
    with pytest.raises(Refused) as refused:
        kube.apply(manifest_of(entry, namespace), dry_run=True)
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


def test_a_second_pass_over_what_is_there_writes_nothing(
    plane: ControlPlane, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    kube.apply(modeldeployment("settled", namespace, replicas=2))
    model = Model(kube, namespace, "settled")

    def has_children() -> bool:
        return bool(
            len(model.pods()) == 2
            and kube.get("Service", model.name, namespace)
            and kube.get("PodDisruptionBudget", model.name, namespace)
            and model.condition("Ready")
        )

    with running_operator(plane, tmp_path / "log"):
        eventually("all children are there", has_children, 30, model.explain)
        settled = AuditLog.from_now(plane.audit_log).collect(2.0)
    log = AuditLog.from_now(plane.audit_log)
    with running_operator(plane, tmp_path / "log"):
        # A newcomer's children show that the new process has been through its queue.
        kube.apply(modeldeployment("newcomer", namespace))
        newcomer = Model(kube, namespace, "newcomer")
        eventually("the newcomer has a status", lambda: newcomer.condition("Ready"), 30, newcomer.explain)
        kube.merge("ModelDeployment", model.name, namespace, {"metadata": {"labels": {"seen": "again"}}})
        writes = log.collect(2.0)
    about_it = [write for write in [*settled, *writes] if write.name.startswith(model.name)]
    assert [(write.verb, write.resource) for write in about_it] == [("patch", "modeldeployments")]
