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
from stoker_operator.profiles import profile_of

KIND = "ControllerRevision"
# Of the ModelDeployment's uid: what a deleted one of this name left behind is in nobody's way.
_UID_LENGTH = 4


def record(model: ModelDeployment, revision: str, template: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the record of a revision.

    Args:
        model: whose revision it is.
        revision: its hash.
        template: see `desired.pod.pod_template`.
        number: its place in history: later ones have higher numbers.
    """
    metadata = template["metadata"]
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
        "data": {
            "template": {
                # Namespace and owner are those of whoever makes pods of it, also after a restored backup.
                "metadata": {name: metadata[name] for name in ("labels", "annotations")},
                "spec": template["spec"],
            },
            "profile": profile_of(model.spec).name,
            "operatorVersion": __version__,
        },
    }


def recorded_template(model: ModelDeployment, stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the template that a record holds; None when it holds none."""
    template = (stored.get("data") or {}).get("template") or {}
    metadata, spec = template.get("metadata") or {}, template.get("spec")
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
