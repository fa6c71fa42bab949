"""Entries of `metadata.managedFields` as an API server writes them."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
REPLICAS: Object = {"f:spec": {"f:replicas": {}}}
# Operation and subresource: of a server-side apply, of a plain write, of a write to /scale.
APPLY, UPDATE, SCALE = ("Apply", ""), ("Update", ""), ("Update", "scale")


def entry(manager: str, operation: str, subresource: str, fields: Object) -> Object:
    """Return one entry."""
    found: Object = {
        "manager": manager,
        "operation": operation,
        "apiVersion": "stoker.dev/v1alpha1",
        "time": "2026-03-01T12:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    return {**found, "subresource": subresource} if subresource else found
