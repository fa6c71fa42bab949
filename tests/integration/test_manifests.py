"""A real API server takes every manifest that we ship or make, unknown fields refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from service_accounts import make_accounts, make_runtime_classes, wait_for_account

from check_manifests import documents, helm, render
from scenarios.files import EXAMPLES, GOLDEN
from scenarios.kube import Kube, load_manifests
from scenarios.manifests import namespace_manifest

pytestmark = pytest.mark.integration

CHART_VALUES = {
    "defaults": (),
    "namespaced": ("namespaces={team-a,team-b}",),
}


def accepts(kube: Kube, text: str) -> None:
    manifests = list(documents(text))
    for namespace in {
        found["metadata"]["namespace"] for found in manifests if "namespace" in found["metadata"]
    }:
        kube.apply(namespace_manifest(namespace, "privileged"))
        wait_for_account(kube, namespace)
    make_accounts(kube, manifests)
    make_runtime_classes(kube, (found["spec"] for found in manifests if found["kind"] == "Pod"))
    how = ("--server-side", "--force-conflicts", "--validate=strict", "--filename=-")
    # A dry run makes no account, and a pod of the chart wants its own.
    own = [found for found in manifests if found["kind"] == "ServiceAccount"]
    if own:
        kube.kubectl("apply", *how, text=yaml.safe_dump_all(own))
    kube.kubectl("apply", *how, "--dry-run=server", text=text)


def test_there_are_examples_and_golden_manifests() -> None:
    assert EXAMPLES
    assert GOLDEN


@pytest.mark.parametrize("file", [*EXAMPLES, *GOLDEN], ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_file_is_accepted(file: Path, kube: Kube) -> None:
    assert load_manifests(file)
    accepts(kube, file.read_text())


@pytest.mark.parametrize("values", CHART_VALUES.values(), ids=CHART_VALUES.keys())
def test_rendered_chart_is_accepted(values: tuple[str, ...], kube: Kube) -> None:
    accepts(kube, render(helm(), values))
