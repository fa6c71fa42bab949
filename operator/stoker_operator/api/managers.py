"""Who sets `spec.replicas`, as far as the API server's bookkeeping in `metadata.managedFields` tells. Pure.

It tells who set a field last: a write through /scale takes the field from whoever had it, and an apply that
is forced takes it back. So that two overwrite each other in turn shows in two cases only:

- A manifest that the server applies says the number that was scaled to. Then both own the field.
- A manifest was applied as `kubectl apply` does, which notes it in an annotation. Who scales owns the field,
  and the note says that the next apply sets it as well.

That a plain write owned the field once tells nothing: the API server fills in the default, which belongs to
whoever created the object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_REPLICAS = ("f:spec", "f:replicas")
_NOTE = ("f:metadata", "f:annotations", f"f:{LAST_APPLIED}")
_WHO = ("manager", "operation", "subresource")


@dataclass(frozen=True, slots=True)
class Contest:
    """Two who set `spec.replicas`.

    Args:
        applier: manager that applies a manifest with it.
        scaler: manager that writes through /scale.
    """

    applier: str
    scaler: str


def contest(model: Object) -> Contest | None:
    """Return who sets the replicas of a stored ModelDeployment besides whom, None while nothing shows two."""
    entries = model["metadata"].get("managedFields") or ()
    scalers = sorted(_manager(entry) for entry in entries if _is_scaler(entry))
    appliers = sorted(_manager(entry) for entry in entries if scalers and _is_applier(entry, model))
    return Contest(appliers[0], scalers[0]) if appliers else None


def replica_entries(entries: Iterable[Object]) -> list[dict[str, Any]]:
    """Return the part of managedFields that `contest` needs, which is nothing while nobody scales."""
    found = list(entries)
    return [kept for entry in found for kept in _shortened(entry)] if any(map(_is_scaler, found)) else []


def _shortened(entry: Object) -> Iterator[dict[str, Any]]:
    fields: dict[str, Any] = {}
    for path in filter(lambda path: _has(entry, path), (_REPLICAS, _NOTE)):
        nested: dict[str, Any] = {}
        for step in reversed(path):
            nested = {step: nested}
        fields |= nested
    if fields:
        yield {**{name: entry[name] for name in _WHO if name in entry}, "fieldsV1": fields}


def _is_scaler(entry: Object) -> bool:
    return entry.get("subresource") == "scale" and _has(entry, _REPLICAS)


def _is_applier(entry: Object, model: Object) -> bool:
    """Tell whether what a manager applies says how many replicas."""
    if entry.get("subresource"):
        return False
    if entry.get("operation") == "Apply":
        return _has(entry, _REPLICAS)
    return _has(entry, _NOTE) and _notes_replicas(model)


def _notes_replicas(model: Object) -> bool:
    text = (model["metadata"].get("annotations") or {}).get(LAST_APPLIED, "")
    try:
        applied = json.loads(text)
    except (ValueError, RecursionError):
        return False  # anybody may write an annotation
    spec = applied.get("spec") if isinstance(applied, dict) else None
    return isinstance(spec, dict) and spec.get("replicas") is not None


def _has(entry: Object, path: tuple[str, ...]) -> bool:
    fields: Any = entry.get("fieldsV1")
    for step in path:
        if not isinstance(fields, Mapping) or step not in fields:
            return False
        fields = fields[step]
    return True


def _manager(entry: Object) -> str:
    return str(entry.get("manager") or "somebody")
