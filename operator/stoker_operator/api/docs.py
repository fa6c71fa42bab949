"""The API reference, from the same models as the CRD. ``python -m stoker_operator.api.docs`` prints it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from stoker_operator.api.crd import crd
from stoker_operator.api.labels import API_VERSION, KIND

_HEAD = f"""# `{KIND}` ({API_VERSION})

Generated from `operator/stoker_operator/api` by `make docs`; edit it there. `kubectl explain mdep.spec` says
the same. Rules are checked by the API server when an object is applied.
"""


def api_reference() -> str:
    """Return the file ``docs/api.md``."""
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    parts = [_HEAD, *_rules(schema, "metadata")]
    for name in ("spec", "status"):
        parts += _section(name, schema["properties"][name])
    return "\n".join(parts).rstrip() + "\n"


def _section(path: str, schema: dict[str, Any]) -> Iterator[str]:
    """Write one object: a table of its fields, its rules, then the objects inside it."""
    yield f"## `{path}`\n\n{schema.get('description', '')}\n"
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        default = "**required**" if name in required else _default(field)
        yield f"| `{name}` | {_type(field)} | {default} | {_cell(field)} |"
    yield ""
    yield from _rules(schema, path)
    for name, field in schema["properties"].items():
        inner, suffix = (field["items"], "[]") if "items" in field else (field, "")
        if "properties" not in field:
            yield from _rules(field, f"{path}.{name}")
        if "properties" in inner:
            yield from _section(f"{path}.{name}{suffix}", inner)


def _rules(schema: dict[str, Any], path: str) -> Iterator[str]:
    found = schema.get("x-kubernetes-validations", ())
    if found:
        lines = "\n".join(f"- {rule['message']}" for rule in found)
        yield f"Rules of `{path}`:\n\n{lines}\n"


def _type(field: dict[str, Any]) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "items" in field:
        item = _type(field["items"])
        return f"list of {item}s" if item.isalpha() else f"list of {item}"
    if "additionalProperties" in field:
        return f"map to {_type(field['additionalProperties'])}"
    limits = [str(field[key]) for key in ("minimum", "maximum") if key in field]
    span = f", {' to '.join(limits)}" if len(limits) == 2 else f", at least {limits[0]}" if limits else ""
    return f"{field['type']}{span}"


def _default(field: dict[str, Any]) -> str:
    if "default" not in field or field.get("type") == "object":
        return ""
    value = field["default"]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(field: dict[str, Any]) -> str:
    return str(field.get("description", "")).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.stdout.write(api_reference())
