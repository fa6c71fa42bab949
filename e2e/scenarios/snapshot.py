"""What a namespace holds, without what differs between two runs that did the same."""

from __future__ import annotations

import json
from typing import Any

from scenarios.kube import Kube, Object

KINDS = ("ModelDeployment", "Pod", "Service", "PodDisruptionBudget")
_METADATA = ("name", "labels", "annotations")
_CONDITION = ("type", "status", "reason", "observedGeneration")
_ASSIGNED = {
    "Pod": ("nodeName", "tolerations", "preemptionPolicy", "priority"),
    "Service": ("clusterIP", "clusterIPs"),
}


def snapshot(kube: Kube, namespace: str) -> list[str]:
    """Return every object that matters as normalised JSON, sorted; equal runs give equal lists."""
    things = [(kind, thing) for kind in KINDS for thing in kube.get_all(kind, namespace)]
    return sorted(json.dumps(_normalised(kind, thing), sort_keys=True) for kind, thing in things)


def _normalised(kind: str, thing: Object) -> Object:
    metadata, spec = thing["metadata"], dict(thing["spec"])
    for field in _ASSIGNED.get(kind, ()):
        spec.pop(field, None)
    kept: dict[str, Any] = {name: metadata[name] for name in _METADATA if name in metadata}
    # Covers the owner's uid, which is another one in each run.
    kept.get("annotations", {}).pop("stoker.dev/applied-hash", None)
    kept["owners"] = [owner["name"] for owner in metadata.get("ownerReferences", [])]
    kept["is_deleted"] = "deletionTimestamp" in metadata
    normalised: Object = {"kind": kind, "metadata": kept, "spec": spec}
    if kind == "Pod":
        # Which of a group's equal pods survives a scale-down depends on timing, and with it their ordinals.
        _forget_ordinal(kept, spec)
        normalised["ready"] = [entry["ready"] for entry in thing["status"].get("containerStatuses", [])]
    if kind == "ModelDeployment":
        normalised["status"] = _normalised_status(thing.get("status") or {})
    return normalised


def _forget_ordinal(metadata: Object, spec: Object) -> None:
    name = metadata["name"]
    stem = name.rpartition("-")[0]
    for fields in (metadata, metadata["labels"], spec):
        for key, value in fields.items():
            if value == name:
                fields[key] = f"{stem}-N"


def _normalised_status(status: Object) -> Object:
    conditions = [{name: entry.get(name) for name in _CONDITION} for entry in status.get("conditions", [])]
    return {**status, "conditions": sorted(conditions, key=lambda entry: str(entry["type"]))}
