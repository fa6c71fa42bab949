"""What the chart makes of values: null, and what cannot work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from check_manifests import helm, render

CHART = Path(__file__).resolve().parents[2] / "charts" / "stoker"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
# Maps that whoever installs fills as Kubernetes has it: null empties them.
FREE = ("resources", "test.resources", "monitoring.dashboard.labels")


def fields(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of the chart with its name; a map comes before what is in it."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        yield name, value
        if isinstance(value, dict) and name not in FREE:
            yield from fields(value, f"{name}.")


MAPS = sorted(name for name, value in fields(VALUES) if isinstance(value, dict) and name not in FREE)


def test_defaults_for_null_are_those_of_the_values() -> None:
    """The template needs a copy: helm hands it no values.yaml, and has taken away what is null."""
    text = (CHART / "templates" / "_values.tpl").read_text()
    body = text.split('{{- define "stoker.defaults" -}}')[1].split("{{- end -}}")[0]
    assert yaml.safe_load(body) == VALUES


def test_every_template_has_whole_values() -> None:
    templates = [*(CHART / "templates").rglob("*.yaml"), CHART / "templates" / "NOTES.txt"]
    assert len(templates) > 10
    for path in templates:
        assert path.read_text().startswith('{{- include "stoker.values" . -}}\n'), path


@pytest.mark.integration
@pytest.mark.parametrize("name", MAPS)
def test_a_map_without_anything_counts_as_left_out(name: str) -> None:
    assert render(helm(), (f"{name}=null",)) == render(helm(), ())


@pytest.mark.integration
def test_fields_that_are_null_count_as_left_out() -> None:
    leaves = [name for name, value in fields(VALUES) if name not in MAPS and name not in FREE]
    assert {"namespaces", "crds.install", "rbac.create", "logLevel", "image.repository"} <= set(leaves)
    assert render(helm(), tuple(f"{name}=null" for name in leaves)) == render(helm(), ())


@pytest.mark.integration
@pytest.mark.parametrize("name", [*FREE, "resources.limits"])
def test_null_empties_a_map_that_is_free_to_fill(name: str) -> None:
    settings = (f"{name}=null", "monitoring.dashboard.enabled=true")
    assert render(helm(), settings) != render(helm(), settings[1:])
