"""Every pod that we make or install passes the restricted pod security standard of a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from service_accounts import make_runtime_classes, wait_for_account

from check_manifests import RENDERINGS, documents, helm, render
from scenarios.files import GOLDEN
from scenarios.kube import Kube, Object, Refused, path
from scenarios.manifests import namespace_manifest

pytestmark = pytest.mark.integration

# Mounts a folder of the node, which the standard forbids; only where an administrator allows it.
UNRESTRICTED = {"node-folder"}


@pytest.fixture(scope="module")
def restricted(kube: Kube) -> str:
    """A namespace that refuses other pods, with the account that pods run under."""
    name = "restricted"
    kube.apply(namespace_manifest(name))
    wait_for_account(kube, name)
    return name


def create(kube: Kube, namespace: str, spec: Object) -> None:
    """Ask for a pod, without making it."""
    plain = {name: value for name, value in spec.items() if name not in ("serviceAccountName", "nodeName")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": plain}
    kube.request("POST", path("Pod", namespace), pod, dryRun="All", fieldValidation="Strict")


def pod_specs(text: str) -> Iterator[Object]:
    for manifest in documents(text):
        if manifest["kind"] == "Pod":
            yield manifest["spec"]
        elif manifest["kind"] == "Deployment":
            yield manifest["spec"]["template"]["spec"]


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_pods_of_models_are_restricted_ones(kube: Kube, restricted: str, file: Path) -> None:
    specs = list(pod_specs(file.read_text()))
    assert len(specs) == 1
    make_runtime_classes(kube, specs)
    if file.stem in UNRESTRICTED:
        with pytest.raises(
            Refused, match='violates PodSecurity "restricted:latest": restricted volume types'
        ):
            create(kube, restricted, specs[0])
    else:
        create(kube, restricted, specs[0])


@pytest.mark.parametrize("settings", RENDERINGS.values(), ids=RENDERINGS.keys())
def test_pods_of_the_chart_are_restricted_ones(
    kube: Kube, restricted: str, settings: tuple[str, ...]
) -> None:
    specs = list(pod_specs(render(helm(), settings)))
    has_test = "rbac.create=false" not in settings
    assert len(specs) == 1 + has_test
    for spec in specs:
        create(kube, restricted, spec)


def test_the_standard_is_enforced_here(kube: Kube, restricted: str) -> None:
    with pytest.raises(Refused, match="violates PodSecurity"):
        create(kube, restricted, {"containers": [{"name": "c", "image": "i"}]})
