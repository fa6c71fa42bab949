"""Keeps, from what the caches say of pods, which groups of several wait for nodes; wakes whose turn it is.

What is kept here can be told anew from the pods at any moment, as after a restart. Besides there is only what
passes of this process are doing right now, and what they were refused.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from stoker_operator.observed import Turn
from stoker_operator.plan.turns import Entrant, Id, Ticket, entrant, ticket, turns

Object = dict[str, Any]
Key = tuple[str, str]


class Turns:
    """The lines of all namespaces. A cluster without groups of several pods has none, and pays nothing.

    Args:
        clock: the time.
        owner: uid of a ModelDeployment that is there to stay; None of one that is not, whose pods go with it.
        changed: called with the key of a ModelDeployment one of whose groups stands elsewhere now.
    """

    def __init__(
        self,
        clock: Callable[[], datetime],
        owner: Callable[[Key], str | None],
        changed: Callable[[Key], None],
    ) -> None:
        self._clock = clock
        self._owner = owner
        self._changed = changed
        self._tickets: dict[Key, Ticket] = {}  # by namespace and name of the pod
        self._pods: dict[str, dict[Id, set[Key]]] = defaultdict(lambda: defaultdict(set))
        self._entrants: dict[str, dict[Id, Entrant]] = {}
        self._told: dict[str, dict[Id, Turn]] = {}
        self._going: dict[Key, frozenset[str]] = {}
        self._balked: dict[str, set[Id]] = defaultdict(set)

    def of(self, key: Key) -> Mapping[str, Turn]:
        """Return where the groups of a ModelDeployment stand that wait for nodes, by name."""
        namespace, name = key
        if not any(found[0] == name for found in self._entrants.get(namespace, ())):
            return {}
        # By time alone others may stand elsewhere as well, whom nobody else would wake.
        self.tell(namespace)
        return {group: turn for (owner, group), turn in self._told[namespace].items() if owner == name}

    def see(self, pod: Object, held: Callable[[], Object | None]) -> None:
        """Take in that a pod came, changed or went.

        Args:
            pod: a copy of it, maybe its last.
            held: returns what the cache has of that name now.
        """
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        before = self._tickets.get(key)
        if before is None and ticket(pod) is None:
            return
        now = held()
        after = ticket(now) if now is not None else None
        if after == before:
            return
        groups = self._pods[key[0]]
        if before is not None:
            del self._tickets[key]
            groups[before.id].discard(key)
        if after is not None:
            self._tickets[key] = after
            groups[after.id].add(key)
        ids = {found.id for found in (before, after) if found is not None}
        if any([self._renew(key[0], id_) for id_ in ids]):
            self.tell(key[0])

    def tell(self, namespace: str) -> None:
        """Wake the ModelDeployments one of whose groups stands elsewhere than last time."""
        before = self._told.get(namespace, {})
        if not before and not self._entrants.get(namespace):
            return
        after = self._told[namespace] = self._turns(namespace)
        for id_ in before.keys() | after.keys():
            if before.get(id_) != after.get(id_):
                self._changed((namespace, id_[0]))

    def go(self, key: Key, standing: Mapping[str, Turn]) -> None:
        """A pass has planned with these turns: until its end, whoever may go by them counts as on its way."""
        groups = frozenset(group for group, turn in standing.items() if turn.has_come)
        if groups:
            self._going[key] = groups
        else:
            self._going.pop(key, None)

    def done(self, key: Key) -> None:
        """That pass is over. Whoever could have gone and did not lets others go first from now on."""
        groups = self._going.pop(key, None)
        if groups is None:
            return
        namespace, name = key
        for group in groups:
            found = self._entrants.get(namespace, {}).get((name, group))
            if found is not None and found.let_go_at is None:
                self._balked[namespace].add(found.id)
        self.tell(namespace)

    def _renew(self, namespace: str, id_: Id) -> bool:
        """Look at a group again; returns whether its line sees it otherwise than before."""
        keys = self._pods[namespace][id_]
        entrants = self._entrants.setdefault(namespace, {})
        before = entrants.pop(id_, None)
        after = entrant([self._tickets[key] for key in keys]) if keys else None
        if after is not None:
            entrants[id_] = after
        if after is None or after.let_go_at is not None:
            self._balked[namespace].discard(id_)
        if not keys:
            del self._pods[namespace][id_]
        return before != after

    def _turns(self, namespace: str) -> dict[Id, Turn]:
        staying = [
            found
            for found in self._entrants.get(namespace, {}).values()
            if (uid := self._owner((namespace, found.id[0]))) is not None and found.owner in ("", uid)
        ]
        going = {
            (name, group)
            for (where, name), groups in self._going.items()
            if where == namespace
            for group in groups
        }
        return turns(staying, going, self._balked[namespace], self._clock())
