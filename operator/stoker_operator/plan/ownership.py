"""Whose an object is: ours, to be adopted, somebody else's.

Objects lose their owner when a ModelDeployment is deleted with ``--cascade=orphan``, and when a backup is
restored. What we would have made and nobody controls becomes ours again, as a ReplicaSet claims its pods: to
make a second one beside it would need twice the accelerators.
"""

from __future__ import annotations

from stoker_operator.api import labels
from stoker_operator.desired.metadata import common_labels, is_owned_by
from stoker_operator.observed import Manifest
from stoker_operator.plan.pods import is_terminating, labels_of


def is_ours(child: Manifest, model: Manifest) -> bool:
    """Whether an object belongs to a ModelDeployment, or will once it has been adopted."""
    return is_owned_by(child, model["metadata"]["uid"]) or is_orphan(child, model)


def is_orphan(child: Manifest, model: Manifest) -> bool:
    """Whether an object that nobody controls is one that we made for a ModelDeployment of this name."""
    metadata, own, name = child["metadata"], labels_of(child), model["metadata"]["name"]
    if any(reference.get("controller") for reference in metadata.get("ownerReferences") or ()):
        return False
    is_labelled = common_labels(name).items() <= own.items()
    return is_labelled and _has_our_name(child, name) and not is_terminating(child)


def _has_our_name(child: Manifest, name: str) -> bool:
    """Whether an object has the name that we give: the ModelDeployment's, or one that begins with both."""
    own, found = labels_of(child), child["metadata"]["name"]
    revision = own.get(labels.REVISION)
    return str(found).startswith(f"{name}-{revision}-") if revision else bool(found == name)
