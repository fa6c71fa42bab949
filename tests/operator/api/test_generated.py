"""The CRD, its copy in the chart and the API reference are what the models say; every field is explained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoker_operator.api.crd import crd, crd_yaml
from stoker_operator.api.docs import api_reference

ROOT = Path(__file__).parents[3]
SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field.get("items", field), f"{path}.{name}")


FIELDS = [*fields(SCHEMA["properties"]["spec"], "spec"), *fields(SCHEMA["properties"]["status"], "status")]


@pytest.mark.parametrize(
    ("file", "text", "target"),
    [
        pytest.param("crds/modeldeployments.yaml", crd_yaml, "crd", id="crd"),
        pytest.param("charts/stoker/files/modeldeployments.yaml", crd_yaml, "crd", id="chart"),
        pytest.param("docs/api.md", api_reference, "docs", id="docs"),
    ],
)
def test_generated_file_is_up_to_date(file: str, text: Any, target: str) -> None:
    assert (ROOT / file).read_text() == text(), f"run `make {target}` and commit the result"


@pytest.mark.parametrize(("path", "field"), FIELDS, ids=[path for path, _ in FIELDS])
def test_field_has_a_description_and_a_type(path: str, field: dict[str, Any]) -> None:
    assert field["description"].endswith("."), path
    assert "type" in field or field.get("x-kubernetes-int-or-string"), path


@pytest.mark.parametrize(("path", "field"), FIELDS, ids=[path for path, _ in FIELDS])
def test_rules_stand_on_bounded_values(path: str, field: dict[str, Any]) -> None:
    """The API server estimates what rules may cost from these bounds, and refuses what may cost much."""
    bounds = {"string": "maxLength", "array": "maxItems"}
    if path.startswith("spec") and field.get("type") in bounds and "enum" not in field:
        assert bounds[field["type"]] in field, path


def test_the_schema_has_only_words_that_a_crd_knows() -> None:
    """JSONSchemaProps of apiextensions.k8s.io/v1; others are refused or dropped, with what they say."""
    known = {
        "type",
        "description",
        "enum",
        "default",
        "properties",
        "items",
        "additionalProperties",
        "required",
    }
    known |= {
        "format",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "maxProperties",
    }
    unknown = {path: set(field) - known for path, field in FIELDS}
    assert {
        path: words for path, words in unknown.items() if any(w[:13] != "x-kubernetes-" for w in words)
    } == {}


def test_rules_say_what_to_do() -> None:
    rules = [rule for _, field in FIELDS for rule in field.get("x-kubernetes-validations", ())]
    assert len(rules) >= 15
    assert all(len(rule["message"].split()) >= 5 for rule in rules)


def test_the_reference_names_every_field() -> None:
    text = api_reference()
    assert [path for path, _ in FIELDS if f"| `{path.rsplit('.', 1)[1]}` |" not in text] == []


def test_the_crd_is_small_enough_for_client_side_apply() -> None:
    assert len(crd_yaml()) < 256 * 1024
