"""Groups of several pods on their way to nodes, as the API server stores them."""

from __future__ import annotations

import copy
from datetime import datetime
from typing import Any

from operator_builders import NOW, make_model, shape_of, timestamp, wanted_of, with_size

from stoker_operator.api import labels
from stoker_operator.desired.shape import member

Object = dict[str, Any]

GPU = "nvidia.com/gpu"


def pods_of(
    name: str,
    *,
    size: int = 2,
    wants: dict[str, str] | None = None,
    made_at: datetime = NOW,
    let_go_at: datetime | None = None,
    nodes: int = 0,
    num_turns: int = 0,
) -> list[Object]:
    """A group: so many of its pods have a node; all are held back unless they were let go."""
    wanted = with_size(wanted_of(make_model(name)), size)
    found = []
    for rank in range(size):
        pod = copy.deepcopy(member(shape_of(wanted), rank, f"{name}-0", wanted.revision))
        pod["metadata"] |= {"uid": f"{name}-{rank}", "creationTimestamp": timestamp(made_at)}
        pod["spec"]["containers"][0]["resources"] = {"limits": {GPU: "1"} if wants is None else wants}
        pod["status"] = {"phase": "Pending"}
        if num_turns:
            pod["metadata"]["annotations"][labels.TURNS] = str(num_turns)
        if let_go_at is not None:
            pod["spec"]["schedulingGates"] = []
            pod["metadata"]["annotations"][labels.LET_GO_AT] = timestamp(let_go_at)
        if rank < nodes:
            pod["spec"]["nodeName"] = "node-a"
        found.append(pod)
    return found
