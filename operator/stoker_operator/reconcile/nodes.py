"""What passes know of nodes: which are there, which do not report and since when, and which leave."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from stoker_operator.observed import Node
from stoker_operator.plan.departures import departure

Object = dict[str, Any]

# A drain cordons its node and evicts at once; who evicts one pod from a node that stays is no drain.
EVICTED_LATELY = timedelta(seconds=60)


class KnownNodes:
    """The nodes that the watch told of, and those that it did not.

    The time since when a node is lost is our own: the cluster's clocks may be wrong, and one who asks after a
    restart waits a few seconds more.

    Args:
        clock: the time.
        drains_cordoned: whether a cordon says that pods have to leave; else it is an eviction of one of ours
            from a cordoned node, which is the first that anybody sees of `kubectl drain`.
    """

    def __init__(self, clock: Callable[[], datetime], drains_cordoned: bool = True) -> None:
        self._clock = clock
        self._drains_cordoned = drains_cordoned
        self._nodes: dict[str, Node] = {}
        self._gone: dict[str, Node] = {}
        self._evicted_at: dict[str, datetime] = {}
        self._drained: set[str] = set()  # cordoned nodes from which a pod was evicted

    def update(self, name: str, node: Object | None) -> bool:
        """Take in a node as it is now, None when it was deleted; returns whether that is news."""
        before = self._nodes.pop(name, None)
        if node is None:
            self._drained.discard(name)
            lost_since = before.lost_since if before is not None else None
            self._gone[name] = Node(is_there=False, is_ready=False, lost_since=lost_since or self._clock())
            return before is not None
        back = self._gone.pop(name, None)
        now = self._as_node(name, node)
        if not now.is_ready:
            earlier = before or back
            known_since = earlier.lost_since if earlier is not None else None
            now = replace(now, lost_since=known_since or self._clock())
        self._nodes[name] = now
        return before != now

    def note_eviction(self, name: str) -> bool:
        """Take in that a pod of ours was evicted from a node; returns whether that is news of the node."""
        now = self._clock()
        lately = {node: at for node, at in self._evicted_at.items() if now - at <= EVICTED_LATELY}
        self._evicted_at = {**lately, name: now}
        known = self._nodes.get(name)
        if known is None or known.is_schedulable:
            return False
        self._drained.add(name)
        self._nodes[name] = replace(known, is_leaving=True)
        return not known.is_leaving

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

    def _as_node(self, name: str, node: Object) -> Node:
        """Return what plans need to know of a trimmed node."""
        conditions = node["status"]["conditions"]
        is_ready = all(condition.get("status") == "True" for condition in conditions)
        is_cordoned = node["spec"]["unschedulable"]
        evicted_at = self._evicted_at.get(name)
        if not is_cordoned:
            self._drained.discard(name)
        elif evicted_at is not None and self._clock() - evicted_at <= EVICTED_LATELY:
            self._drained.add(name)
        is_drained = is_cordoned and (self._drains_cordoned or name in self._drained)
        is_leaving = is_drained or bool(node["departure"])
        return Node(is_schedulable=not is_cordoned, is_ready=is_ready, is_leaving=is_leaving)

    def _one(self, name: str, is_current: bool) -> Node:
        known = self._nodes.get(name) or self._gone.get(name)
        if known is None and is_current:
            known = Node(is_there=False, is_ready=False, lost_since=self._clock())
            self._gone[name] = known
        return known or Node()


def trim_node(node: Object) -> Object:
    """A node's status lists its images: megabytes in a cluster, and nobody here reads them.

    `departure`, in its place, is what says that the node is about to go; see `plan.departures`.
    """
    metadata = {name: node["metadata"].get(name) for name in ("name", "uid", "resourceVersion")}
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = [condition for condition in conditions if condition.get("type") == "Ready"]
    unschedulable = bool((node.get("spec") or {}).get("unschedulable"))
    return {
        "metadata": metadata,
        "spec": {"unschedulable": unschedulable},
        "status": {"conditions": ready},
        "departure": departure(node),
    }
