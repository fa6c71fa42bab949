"""`metadata.managedFields` out of the fake's own notes of who owns which field; without times."""

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fakeapi.fields import Path

Object = dict[str, Any]


def manager(name: str, operation: str = "", subresource: str = "") -> str:
    """What the notes call a manager: each operation and subresource has its own."""
    return f"{name} {operation} {subresource}".strip()


def managed_fields(owners: Mapping[Path, set[str]]) -> list[Object]:
    """One entry for each manager."""
    paths: dict[str, list[Path]] = defaultdict(list)
    for path, managers in owners.items():
        for found in managers:
            paths[found].append(path)
    return [_entry(found, paths[found]) for found in sorted(paths)]


def _entry(found: str, paths: list[Path]) -> Object:
    name, operation, subresource = (*found.split(" "), "", "")[:3]
    fields: Object = {}
    for path in sorted(paths, key=repr):
        node = fields
        for step in path:
            node = node.setdefault(_step(step), {})
    entry = {"manager": name, "operation": operation.title() or "Update", "fieldsType": "FieldsV1"}
    return {**entry, "fieldsV1": fields, **({"subresource": subresource} if subresource else {})}


def _step(step: Any) -> str:
    return f"k:{json.dumps(dict([step]))}" if isinstance(step, tuple) else f"f:{step}"
