"""The chart as it is published: packaged, pushed to a registry, and installed from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from oci_registry import running_registry

import package_chart
from check_manifests import documents, render
from cluster import build
from cluster.integration import ControlPlane
from cluster.prerequisites import no_build
from scenarios.kube import Kube
from scenarios.manifests import namespace_manifest
from stoker_operator import __version__

pytestmark = pytest.mark.integration

NAMESPACE = "stoker-from-registry"


@pytest.fixture(autouse=True)
def helm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, caches or repositories of whoever runs the tests."""
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"HELM_{kind}_HOME", str(tmp_path / "helm" / kind))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    problem = no_build("registry")
    if problem:
        pytest.skip(f"no registry: {problem}")
    with running_registry(tmp_path_factory.mktemp("registry") / "log") as address:
        yield address


def helm(*args: str) -> str:
    program = build.ensure("charts")["helm"]
    done = subprocess.run([program, *args], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def test_the_same_sources_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = package_chart.package(tmp_path / "one")
    copy = tmp_path / "elsewhere" / "stoker"
    shutil.copytree(package_chart.CHART, copy)
    for number, path in enumerate(sorted(copy.rglob("*"))):
        os.utime(path, (number, number))
    monkeypatch.setattr(package_chart, "CHART", copy)
    second = package_chart.package(tmp_path / "two")
    assert first.name == f"stoker-{__version__}.tgz"
    assert first.read_bytes() == second.read_bytes()


def test_the_published_chart_renders_and_installs_like_its_folder(
    registry: str, tmp_path: Path, plane: ControlPlane, kube: Kube
) -> None:
    helm("push", str(package_chart.package(tmp_path)), f"oci://{registry}/charts", "--plain-http")
    address = f"oci://{registry}/charts/stoker"
    shown = yaml.safe_load(helm("show", "chart", address, "--version", __version__, "--plain-http"))
    assert (shown["version"], shown["appVersion"]) == (__version__, __version__)

    program, options = build.ensure("charts")["helm"], ("--version", __version__, "--plain-http")
    assert render(program, (), *options, chart=address) == render(program, ())

    # Another fixture has installed the CRD, and helm takes over nothing that it did not make.
    kube.apply(namespace_manifest(NAMESPACE))
    where = ("--namespace", NAMESPACE, "--kubeconfig", str(plane.kubeconfig))
    helm("install", "published", address, *options, *where, "--set", "crds.install=false")
    installed = list(documents(helm("get", "manifest", "published", *where)))
    assert {manifest["kind"] for manifest in installed} >= {"Deployment", "ClusterRole", "ServiceAccount"}
    deployment = kube.get("Deployment", "published-stoker", NAMESPACE)
    assert deployment is not None
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"ghcr.io/stoker-dev/stoker-operator:{__version__}"
    releases = json.loads(helm("list", "--output=json", *where))
    assert [release["chart"] for release in releases] == [f"stoker-{__version__}"]
    helm("uninstall", "published", *where)
    assert kube.get("Deployment", "published-stoker", NAMESPACE) is None
