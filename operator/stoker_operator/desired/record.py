"""The record of a revision: a ControllerRevision, from which all pods of the revision are made.

It is written once, before the first pod, and the API server lets nobody change its data. So pods of one
revision are equal whoever makes them and when: after an edit that waits, by another version of the operator,
and although webhooks have written into the pods that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stoker_operator import __version__
from stoker_operator.api import ModelDeployment, labels
from stoker_operator.desired.hashing import json_hash
from stoker_operator.desired.metadata import common_labels, owner_reference
from stoker_operator.desired.shape import GroupShape
from stoker_operator.profiles import profile_of

KIND = "ControllerRevision"
# Of the ModelDeployment's uid: what a deleted one of this name left behind is in nobody's way.
_UID_LENGTH = 4


def record(model: ModelDeployment, revision: str, shape: GroupShape, number: int) -> dict[str, Any]:
    """Return the record of a revision.

    Args:
        model: whose revision it is.
        revision: its hash.
        shape: of its groups.
        number: its place in history: later ones have higher numbers.
    """
    data: dict[str, Any] = {
        "template": _bare(shape.leader),
        "profile": profile_of(model.spec).name,
        "operatorVersion": __version__,
    }
    if shape.worker is not None:
        data |= {"size": shape.size, "workerTemplate": _bare(shape.worker)}
    return {
        "apiVersion": "apps/v1",
        "kind": KIND,
        "metadata": {
            "name": f"{model.name}-{revision}-{json_hash(model.uid, _UID_LENGTH)}",
            "namespace": model.namespace,
            "labels": {**common_labels(model.name), labels.REVISION: revision},
            "ownerReferences": [owner_reference(model)],
        },
        "revision": number,
        "data": data,
    }


def recorded_shape(model: ModelDeployment, stored: Mapping[str, Any]) -> GroupShape | None:
    """Return the shape of groups that a record holds; None when it holds none."""
    data = stored.get("data") or {}
    leader = _template(model, data.get("template") or {})
    worker = _template(model, data.get("workerTemplate") or {})
    size = recorded_size(stored)
    if leader is None or (size > 1) != (worker is not None):
        return None
    return GroupShape(leader, worker, size)


def recorded_size(stored: Mapping[str, Any]) -> int:
    """Return how many pods a group has by its record."""
    size = (stored.get("data") or {}).get("size", 1)
    return size if isinstance(size, int) and size > 0 else 1


def _bare(template: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out namespace and owner: they are those of whoever makes pods of it, also from a backup."""
    metadata = template["metadata"]
    return {
        "metadata": {name: metadata[name] for name in ("labels", "annotations")},
        "spec": template["spec"],
    }


def _template(model: ModelDeployment, held: Mapping[str, Any]) -> dict[str, Any] | None:
    metadata, spec = held.get("metadata") or {}, held.get("spec")
    if not spec:
        return None
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": model.namespace,
            "labels": dict(metadata.get("labels") or {}),
            "annotations": dict(metadata.get("annotations") or {}),
            "ownerReferences": [owner_reference(model)],
        },
        "spec": spec,
    }
