"""What a group of pods should be: how many, and what each is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stoker_operator.api import labels


@dataclass(frozen=True, slots=True)
class GroupShape:
    """What every group of a revision consists of.

    Args:
        leader: template of rank 0, which answers HTTP; see `desired.pod.pod_template`.
        worker: template of the other ranks; None when there are none.
        size: pods of a group.
    """

    leader: dict[str, Any]
    worker: dict[str, Any] | None = None
    size: int = 1

    def template(self, rank: int) -> dict[str, Any]:
        """Return what the pod of this rank is made from."""
        return self.leader if rank == 0 or self.worker is None else self.worker


def member_name(group: str, rank: int, size: int) -> str:
    """Return the name of a pod; one that is a group by itself has the group's."""
    return group if size == 1 else f"{group}-{rank}"


def member(shape: GroupShape, rank: int, group: str, revision: str, num_restarts: int = 0) -> dict[str, Any]:
    """Return the manifest of one pod of a group.

    Args:
        shape: of the group.
        rank: of the pod, from 0.
        group: name of the group.
        revision: hash of what the shape was made from.
        num_restarts: failed predecessors of the group in a row.
    """
    template = shape.template(rank)
    metadata = template["metadata"]
    own = {
        labels.REVISION: revision,
        labels.POD_GROUP: group,
        labels.GROUP_SIZE: str(shape.size),
        labels.RANK: str(rank),
        labels.ROLE: labels.WORKER if rank else labels.LEADER,
    }
    if not rank:
        own[labels.SERVING] = "true"
    annotations = dict(metadata["annotations"])
    if num_restarts:
        annotations[labels.RESTARTS] = str(num_restarts)
    return {
        **template,
        "metadata": {
            **metadata,
            "name": member_name(group, rank, shape.size),
            "labels": {**metadata["labels"], **own},
            "annotations": annotations,
        },
        "spec": template["spec"] if shape.size == 1 else _bound(template["spec"]),
    }


def _bound(spec: dict[str, Any]) -> dict[str, Any]:
    """Bind a pod to its group.

    No node takes it before the group is whole and may start. And a container's end is the pod's end, which is
    the group's: a kubelet that restarted one rank would leave the others waiting for what it had.
    """
    return {**spec, "restartPolicy": "Never", "schedulingGates": [{"name": labels.GROUP_GATE}]}
