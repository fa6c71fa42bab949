"""The operator against a real API server that has no kubelet and no controllers."""

from __future__ import annotations

from pathlib import Path

import pytest
from operator_process import running_operator

from cluster.integration import ControlPlane
from scenarios.audit import AuditLog, Write
from scenarios.kube import Kube
from scenarios.manifests import modeldeployment, namespace_manifest
from scenarios.models import Model
from scenarios.waiting import eventually

pytestmark = pytest.mark.integration

NAMESPACE = "second-pass"


@pytest.fixture
def namespace(kube: Kube) -> str:
    kube.apply(namespace_manifest(NAMESPACE, "privileged"))
    return NAMESPACE


def about(model: Model, writes: list[Write]) -> list[Write]:
    return [write for write in writes if write.name.startswith(model.name)]


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
        # A write may be refused at first: the namespace gets its service account a moment after it is made.
        log = AuditLog.from_now(plane.audit_log)
        eventually("the first pass is over", lambda: not about(model, log.collect(2.0)), 60, poll_s=0)
    with running_operator(plane, tmp_path / "log"):
        # A newcomer's children show that the new process has been through its queue.
        kube.apply(modeldeployment("newcomer", namespace))
        newcomer = Model(kube, namespace, "newcomer")
        eventually("the newcomer has a status", lambda: newcomer.condition("Ready"), 30, newcomer.explain)
        kube.merge("ModelDeployment", model.name, namespace, {"metadata": {"labels": {"seen": "again"}}})
        writes = log.collect(2.0)
    assert [(write.verb, write.resource) for write in about(model, writes)] == [("patch", "modeldeployments")]
