"""Specs as releases stored them keep their revisions: another hash would restart every pod on an upgrade.

A file for each release, with the defaults that its API server filled in. `make golden` adds the cases that
the current version's file lacks; what stands in a file is never written again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden_cases import CASES
from operator_builders import make_model

import stoker_operator
from stoker_operator.api import parse
from stoker_operator.api.crd import crd
from stoker_operator.desired.revision import revision_of

FILES = Path(__file__).parent.parent / "revisions"
CURRENT = FILES / f"{stoker_operator.__version__}.yaml"


def filled(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return a value with the defaults of its schema, as an API server stores it."""
    if isinstance(value, dict) and "properties" in schema:
        fields = schema["properties"]
        defaults = {name: field["default"] for name, field in fields.items() if "default" in field}
        return {name: filled(item, fields[name]) for name, item in {**defaults, **value}.items()}
    if isinstance(value, list):
        return [filled(item, schema["items"]) for item in value]
    return value


def stored_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a golden case as the API server stores it."""
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    result: dict[str, Any] = filled(make_model(**spec)["spec"], schema)
    return result


def revision(spec: dict[str, Any]) -> str:
    return revision_of(parse(make_model(**spec)))


def recorded(file: Path) -> dict[str, dict[str, Any]]:
    """Return what a release's file holds, nothing where a new version has none yet."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text()) if file.exists() else {}
    return found


def entries() -> list[Any]:
    if os.environ.get("STOKER_WRITE_GOLDEN"):
        kept = recorded(CURRENT)
        specs = {name: stored_spec(spec) for name, spec in CASES.items() if name not in kept}
        kept |= {name: {"revision": revision(spec), "spec": spec} for name, spec in specs.items()}
        CURRENT.write_text(yaml.safe_dump(kept, sort_keys=False, width=110))
    return [
        pytest.param(entry, id=f"{file.stem}-{name}")
        for file in sorted(FILES.glob("*.yaml"))
        for name, entry in recorded(file).items()
    ]


@pytest.mark.parametrize("entry", entries())
def test_stored_spec_keeps_its_revision(entry: dict[str, Any]) -> None:
    assert revision(entry["spec"]) == entry["revision"], "this would restart pods on an upgrade"


def test_what_a_user_writes_and_what_is_stored_of_it_are_one_revision() -> None:
    for spec in CASES.values():
        assert revision(spec) == revision(stored_spec(spec))


def test_every_case_of_the_current_version_is_recorded() -> None:
    assert set(CASES) <= set(recorded(CURRENT)), "run `make golden`"
