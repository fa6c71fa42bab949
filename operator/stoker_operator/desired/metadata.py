"""Labels and owner references that all children share."""

from __future__ import annotations

from typing import Any

from stoker_operator.api import ModelDeployment, labels


def common_labels(name: str) -> dict[str, str]:
    """Return the labels of every child of the ModelDeployment of this name."""
    return {
        "app.kubernetes.io/name": "stoker-runtime",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "stoker",
        labels.DEPLOYMENT: name,
    }


def owner_reference(model: ModelDeployment) -> dict[str, Any]:
    """Return what makes the garbage collector delete a child with its ModelDeployment."""
    return {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "name": model.name,
        "uid": model.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_owned_by(manifest: Any, uid: str) -> bool:
    """Tell whether an object's controller is the ModelDeployment with this uid."""
    for reference in manifest["metadata"].get("ownerReferences", ()):
        if reference.get("controller") and reference["uid"] == uid:
            return True
    return False


def is_left_behind(manifest: Any, model: ModelDeployment) -> bool:
    """Tell whether an object belongs to an earlier ModelDeployment of this name, and so will be collected."""
    references = manifest["metadata"].get("ownerReferences", ())
    earlier = (labels.API_VERSION, labels.KIND, model.name)
    return any(
        (reference.get("apiVersion"), reference.get("kind"), reference.get("name")) == earlier
        and reference["uid"] != model.uid
        for reference in references
    )
