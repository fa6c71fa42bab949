"""Every manifest of examples/ on the real API server; what needs a hub or hardware says so in its status."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.files import EXAMPLES
from scenarios.kube import Kube, load_manifests
from scenarios.models import Model
from scenarios.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120, func_only=True)]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_is_accepted_and_gets_its_children(file: Path, kube: Kube, namespace: str) -> None:
    kube.kubectl("apply", "--namespace", namespace, "--filename", str(file))
    wanted = [
        found["metadata"]["name"] for found in load_manifests(file) if found["kind"] == "ModelDeployment"
    ]
    for name in wanted:
        model = Model(kube, namespace, name)

        def has_answer(model: Model = model) -> bool:
            has_children = bool(model.pods() and kube.get("Service", model.name, namespace))
            return has_children and bool(model.condition("Ready").get("reason"))

        eventually(f"{name} has a pod, a Service and a status", has_answer, 30, model.explain)
    kube.kubectl("delete", "--namespace", namespace, "--filename", str(file), "--wait=false")
    for name in wanted:
        Model(kube, namespace, name).wait_gone()
