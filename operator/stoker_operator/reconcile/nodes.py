"""What passes know of nodes: which are there, which do not report, and since when."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from stoker_operator.observed import Node

Object = dict[str, Any]


class KnownNodes:
    """The nodes that the watch told of, and those that it did not.

    The time since when a node is lost is our own: the cluster's clocks may be wrong, and one who asks after a
    restart waits a few seconds more.

    Args:
        clock: the time.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._nodes: dict[str, Node] = {}
        self._gone: dict[str, Node] = {}

    def update(self, name: str, node: Object | None) -> bool:
        """Take in a node as it is now, None when it was deleted; returns whether that is news."""
        before = self._nodes.pop(name, None)
        if node is None:
            lost_since = before.lost_since if before is not None else None
            self._gone[name] = Node(is_there=False, is_ready=False, lost_since=lost_since or self._clock())
            return before is not None
        back = self._gone.pop(name, None)
        now = as_node(node)
        if not now.is_ready:
            earlier = before or back
            known_since = earlier.lost_since if earlier is not None else None
            now = replace(now, lost_since=known_since or self._clock())
        self._nodes[name] = now
        return before != now

    def of(self, names: Iterable[str], is_current: bool) -> Mapping[str, Node] | None:
        """Return the nodes of these names, None when nodes may not be read.

        Args:
            names: of nodes.
            is_current: whether the watch works, so that a node that it did not tell of is not there.
        """
        if not is_current and not self._nodes:
            return None
        return {name: self._one(name, is_current) for name in names if name}

    def forget_gone(self, is_used: Callable[[str], bool]) -> None:
        """Forget the nodes that are gone and that nothing of ours was bound to."""
        self._gone = {name: node for name, node in self._gone.items() if is_used(name)}

    def _one(self, name: str, is_current: bool) -> Node:
        known = self._nodes.get(name) or self._gone.get(name)
        if known is None and is_current:
            known = Node(is_there=False, is_ready=False, lost_since=self._clock())
            self._gone[name] = known
        return known or Node()


def trim_node(node: Object) -> Object:
    """A node's status lists its images: megabytes in a cluster, and nobody here reads them."""
    metadata = {name: node["metadata"].get(name) for name in ("name", "uid", "resourceVersion")}
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = [condition for condition in conditions if condition.get("type") == "Ready"]
    unschedulable = bool((node.get("spec") or {}).get("unschedulable"))
    return {"metadata": metadata, "spec": {"unschedulable": unschedulable}, "status": {"conditions": ready}}


def as_node(node: Object) -> Node:
    """Return what plans need to know of a trimmed node."""
    conditions = node["status"]["conditions"]
    is_ready = all(condition.get("status") == "True" for condition in conditions)
    return Node(is_schedulable=not node["spec"]["unschedulable"], is_ready=is_ready)
