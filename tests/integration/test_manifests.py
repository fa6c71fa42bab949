"""A real API server takes every manifest that we ship or make, unknown fields refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from check_manifests import helm, render
from scenarios.files import EXAMPLES, GOLDEN
from scenarios.kube import Kube, load_manifests
from scenarios.manifests import namespace_manifest

pytestmark = pytest.mark.integration

CHART_VALUES = {
    "defaults": (),
    "namespaced": ("namespaces={team-a,team-b}",),
}


def accepts(kube: Kube, text: str) -> None:
    for manifest in yaml.safe_load_all(text):
        if manifest and "namespace" in manifest["metadata"]:
            kube.apply(namespace_manifest(manifest["metadata"]["namespace"], "privileged"))
    how = ("--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
    kube.kubectl("apply", *how, "--filename=-", text=text)


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
