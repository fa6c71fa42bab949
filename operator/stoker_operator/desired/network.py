"""The Service that clients call, and the PodDisruptionBudget that keeps a node drain lossless."""

from __future__ import annotations

from typing import Any

from stoker_operator.api import ModelDeployment, labels
from stoker_operator.desired.hashing import json_hash
from stoker_operator.desired.metadata import common_labels, owner_reference
from stoker_operator.desired.scale import Scale


def service(model: ModelDeployment) -> dict[str, Any]:
    """Return the Service of a ModelDeployment: its leaders, less those that drain."""
    spec = model.spec.service
    families = {"ipFamilyPolicy": spec.ip_family_policy, "ipFamilies": spec.ip_families}
    manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(model, dict(spec.annotations or {})),
        "spec": {
            "type": spec.type,
            # What is left out is the cluster's to choose.
            **{name: value for name, value in families.items() if value},
            "selector": labels.serving_selector(model.name),
            "ports": [
                {
                    "name": labels.HTTP_PORT,
                    "port": spec.port,
                    "targetPort": labels.HTTP_PORT,
                    "protocol": "TCP",
                    "appProtocol": "http",
                }
            ],
        },
    }
    return _hashed(manifest)


def budget(
    model: ModelDeployment, scale: Scale, size: int = 1, num_draining: int = 0
) -> dict[str, Any] | None:
    """Return the PodDisruptionBudget, or None when every replica may be missing.

    With the default of no unavailable replica an eviction is refused until the operator, which sees that the
    node leaves, has a replacement that answers elsewhere. Pods that never got ready do not hold up a drain.

    Draining pods are ready, but answer nobody new. They cannot be left out by their label: Kubernetes counts
    again when a pod changes that the budget selects, so one that stops being selected would go on counting
    (updatePod of its disruption controller looks at the new labels only). They are selected, and so many more
    must be available. A change of the number is a new generation, and evictions are refused until that has
    been counted.

    All pods of a group are selected, since the group is lost with any of them. An eviction may hit another
    group each time, so as many pods may go as groups may. When one has lost a pod, the operator takes the
    others away, and that uses up what was left.

    Args:
        model: what it is for.
        scale: how many replicas it should have, and how many of them evictions may take.
        size: pods of a group.
        num_draining: pods of groups that do not serve and still exist.
    """
    if scale.num_wanted <= scale.max_disrupted:
        return None
    min_available = scale.num_wanted * size - scale.max_disrupted
    manifest = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(model, {}),
        "spec": {
            "minAvailable": min_available + num_draining,
            "selector": labels.member_selector(model.name),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
    return _hashed(manifest)


def _metadata(model: ModelDeployment, annotations: dict[str, str]) -> dict[str, Any]:
    return {
        "name": model.name,
        "namespace": model.namespace,
        "labels": common_labels(model.name),
        "annotations": annotations,
        "ownerReferences": [owner_reference(model)],
    }


def _hashed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Stamp a manifest with its own hash, so that a field we stop wanting shows as drift of the stamp."""
    manifest["metadata"]["annotations"][labels.APPLIED_HASH] = json_hash(manifest, 16)
    return manifest
