"""Specs as releases stored them keep their revisions: another hash would restart every pod on an upgrade.

A file for each release, with the defaults that its API server filled in. `make golden` adds the cases that
the current version's file lacks; what stands in a file is never written again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden_cases import CASES
from operator_builders import make_model

import stoker_operator
from stoker_operator.api import parse
from stoker_operator.api.crd import crd
from stoker_operator.api.spec import Spec
from stoker_operator.desired.revision import POD_SHAPING, revision_of

FILES = Path(__file__).parent.parent / "revisions"
CURRENT = FILES / f"{stoker_operator.__version__}.yaml"
SCHEMA: dict[str, Any] = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
Keys = tuple[str, ...]


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
    result: dict[str, Any] = filled(make_model(**spec)["spec"], SCHEMA)
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


def fields(schema: Mapping[str, Any], path: Keys = ()) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
    """Yield the fields that hold values, each with its path; what is in a list has no number in it."""
    inner = schema.get("items", schema)
    if "properties" not in inner:
        yield path, schema
        return
    for name, field in inner["properties"].items():
        yield from fields(field, (*path, name))


def values(value: Any, schema: Mapping[str, Any], path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield what a spec holds, each value with the path of its field."""
    inner = schema.get("items", schema)
    if "properties" not in inner:
        yield path, value
        return
    for item in value if isinstance(value, list) else [value]:
        for name, held in item.items():
            yield from values(held, inner["properties"][name], (*path, name))


def held_in(file: Path) -> dict[Keys, list[Any]]:
    """Return what a release's specs hold in each field."""
    found: dict[Keys, list[Any]] = {}
    for entry in recorded(file).values():
        for path, value in values(entry["spec"], SCHEMA):
            found.setdefault(path, []).append(value)
    return found


def test_every_field_has_a_value_of_its_own_in_a_recorded_spec() -> None:
    """Else another way to read or to write it could change revisions, and nobody would see."""
    held = held_in(CURRENT)
    bare = [
        ".".join(path)
        for path, field in fields(SCHEMA)
        if all(value == field.get("default") for value in held.get(path, ()))
    ]
    assert bare == [], "add them to a case in tests/golden_cases.py, and run `make golden`"


def test_every_default_of_what_shapes_pods_is_recorded_as_stored() -> None:
    """Of a default that changes, the stored one is no default any more: another revision, which is seen."""
    held = held_in(CURRENT)
    for path, field in fields(SCHEMA):
        if path[0] in POD_SHAPING and "default" in field:
            assert field["default"] in held.get(path, ()), ".".join(path)


def test_every_part_of_a_spec_shapes_pods_or_is_known_not_to() -> None:
    assert set(Spec.model_fields) - POD_SHAPING == {
        "pod_disruption_budget",
        "replicas",
        "rollout",
        "service",
        "suspend",
    }


def test_each_value_that_shapes_pods_is_part_of_the_revision_and_no_other() -> None:
    for name, entry in recorded(CURRENT).items():
        for section, held in entry["spec"].items():
            for field in held if isinstance(held, dict) else ():
                is_default = held[field] == SCHEMA["properties"][section]["properties"][field].get("default")
                if is_default or field == "source":
                    continue
                rest = {key: value for key, value in held.items() if key != field}
                changed = revision({**entry["spec"], section: rest}) != entry["revision"]
                assert changed is (section in POD_SHAPING), f"{name}: {section}.{field}"
