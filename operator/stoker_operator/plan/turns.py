"""Whose turn it is to go to nodes: of the groups of several pods that compete, one at a time. Pure.

Two groups that are let go together may each get half of what is free, and wait for the other's half for ever.
So the whole ones stand in a line behind our gate, and the first is let go when the one before has nodes for
all its pods, or is gone. Those compete that are of one namespace and ask for one extended resource, such as
nvidia.com/gpu, however much of it: amounts that differ get stuck just the same. Those that ask for none
compete for CPUs and memory. A group of one pod has all that it wants or nothing, and needs no turn.

- The line is in the order in which the groups were made; groups that are not whole are not in it.
- A group that has had its turn for PATIENCE_S, and holds something or keeps others waiting, makes room: its
  pods are deleted, and its successor stands at the end of the line, after a back-off of 10 s, 20 s, 40 s …
  300 s. One that holds nothing and is in nobody's way may wait for a node to be added.
- Other namespaces, and other resources of the same nodes, have lines of their own, so that the trouble of one
  team holds up no other. Groups of two lines may be in each other's way until one's patience ends, which is
  not the same for any two.
- One that should be gone and is not, because somebody refuses its deletion, is not waited for.

All of it is told from the pods: their gates, their nodes, and when we let them go, which stands on them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from stoker_operator.api import labels
from stoker_operator.desired.hashing import json_hash
from stoker_operator.observed import Manifest, Turn
from stoker_operator.plan.members import group_name, noted_size, rank_of
from stoker_operator.plan.pods import (
    gates_of,
    has_ended,
    is_terminating,
    labels_of,
    noted_count,
    noted_time,
    parse_time,
)

# A scheduler with room binds the pods of a group within a second, one with a queue of a thousand in twenty.
PATIENCE_S = 60.0
SPREAD_S = 30.0  # longer, at most: two lines that are in each other's way must not give up together
OVERDUE_S = 30.0  # longer still, and nobody waits for it
FIRST_BACKOFF_S = 10.0
# Shorter than the ten minutes after which autoscalers take away a node that came too late and stands empty.
MAX_BACKOFF_S = 300.0

_NEVER = datetime.max.replace(tzinfo=UTC)

Id = tuple[str, str]  # names of the ModelDeployment and of the group


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a line needs to know of one pod.

    Args:
        id: of its group.
        size: pods that the group should have.
        rank: its place in the group.
        uid: of the pod.
        owner: uid of what controls it, "" for nothing.
        is_intact: it has neither ended nor been deleted.
        is_placed: it has a node.
        is_held_back: our gate keeps it from any.
        is_loose: it may get a node at any moment.
        created_at: of the pod.
        let_go_at: when we took the gate away.
        num_turns: that its group's predecessors had in a row, and got no nodes for all.
        wants: extended resources, by name.
    """

    id: Id
    size: int
    rank: int
    uid: str
    owner: str
    is_intact: bool
    is_placed: bool
    is_held_back: bool
    is_loose: bool
    created_at: datetime
    let_go_at: datetime | None
    num_turns: int
    wants: frozenset[str]


@dataclass(frozen=True, slots=True)
class Entrant:
    """A group that waits for its turn, or has it.

    Args:
        id: of the group.
        owner: uid of what controls its pods, "" for nothing.
        wants: what it competes for.
        due_at: when it comes to stand in line.
        let_go_at: when the last of its pods was let go; None while all are held back.
        has_node: whether a pod of it has one, and holds something there.
        patience_s: how long its turn lasts.
    """

    id: Id
    owner: str
    wants: frozenset[str]
    due_at: datetime
    let_go_at: datetime | None = None
    has_node: bool = False
    patience_s: float = PATIENCE_S

    @property
    def group(self) -> str:
        """Its name."""
        return self.id[1]


def ticket(pod: Manifest) -> Ticket | None:
    """Return what a line needs to know of a pod; None when it is a group by itself, or of none."""
    own, metadata = labels_of(pod), pod["metadata"]
    size = noted_size(pod)
    rank = rank_of(pod) if size > 1 else None
    if rank is None:
        return None
    notes, gates = metadata.get("annotations") or {}, gates_of(pod)
    owners = (found["uid"] for found in metadata.get("ownerReferences") or () if found.get("controller"))
    is_placed = bool(pod["spec"].get("nodeName"))
    return Ticket(
        id=(own.get(labels.DEPLOYMENT, ""), group_name(pod)),
        size=size,
        rank=rank,
        uid=metadata["uid"],
        owner=next(owners, ""),
        is_intact=not (has_ended(pod) or is_terminating(pod)),
        is_placed=is_placed,
        is_held_back=labels.GROUP_GATE in gates,
        is_loose=not is_placed and not gates,
        created_at=parse_time(metadata["creationTimestamp"]),
        let_go_at=noted_time(notes.get(labels.LET_GO_AT, "")),
        num_turns=noted_count(notes.get(labels.TURNS, "")),
        wants=frozenset(_extended(pod)),
    )


def entrant(tickets: Sequence[Ticket]) -> Entrant | None:
    """Return a group as its line sees it; None when it has no business there.

    It has none when it has nodes for all its pods, when it is not whole yet, and when it is broken, which its
    own plan sees to. And none when somebody else's gate is all that holds it back: they may take days.
    """
    first = min(tickets, key=lambda found: (found.rank, found.uid))
    is_whole = {found.rank for found in tickets} >= set(range(first.size))
    if not is_whole or not all(found.is_intact for found in tickets):
        return None
    # The last one's: a group that was completed late is as old as that, and passes none that went before.
    made_at = max(found.created_at for found in tickets)
    due_at = made_at + timedelta(seconds=backoff_s(first.num_turns))
    wants = frozenset().union(*(found.wants for found in tickets)) or frozenset({"cpu"})
    if all(found.is_held_back for found in tickets):
        return Entrant(first.id, first.owner, wants, due_at)
    if not any(found.is_loose or found.is_held_back for found in tickets):
        return None
    let_go_at = max((found.let_go_at for found in tickets if found.let_go_at), default=made_at)
    has_node = any(found.is_placed for found in tickets)
    return Entrant(first.id, first.owner, wants, due_at, let_go_at, has_node, patience_s(first.uid))


def backoff_s(num_turns: int) -> float:
    """Return how long a group is not tried, after so many turns in a row of its predecessors."""
    return min(FIRST_BACKOFF_S * 2.0 ** min(num_turns - 1, 30), MAX_BACKOFF_S) if num_turns else 0.0


def patience_s(uid: str) -> float:
    """Return how long the turn of a group lasts whose first pod has this uid."""
    digits = 8
    return PATIENCE_S + SPREAD_S * int(json_hash(uid, digits), 16) / 16.0**digits


def turns(
    entrants: Iterable[Entrant], going: Collection[Id], balked: Collection[Id], now: datetime
) -> dict[Id, Turn]:
    """Return where the groups of one namespace stand.

    Args:
        entrants: the groups.
        going: those that are being let go at this moment, whatever their pods show yet.
        balked: those whose pods could not be let go when it was their turn; they come after all others.
        now: the time.
    """
    order = sorted(entrants, key=lambda found: (found.id in balked, found.due_at, found.group))
    waiting = [found for found in order if found.let_go_at is None and found.id not in going]
    due = [found for found in waiting if found.due_at <= now]
    under_way = [found for found in order if found.let_go_at is not None or found.id in going]
    over_at = {found.id: _over_at(found, due) for found in under_way}
    result = {found.id: _under_way(found, over_at[found.id], now) for found in under_way}
    result |= {found.id: Turn(not_before=found.due_at, changes_at=found.due_at) for found in waiting}
    given_up_at = {id_: at + timedelta(seconds=OVERDUE_S) for id_, at in over_at.items() if at is not None}
    # Each stands behind the last one before it that wants the same.
    last: dict[str, tuple[int, Entrant]] = {}
    for place, one in enumerate(under_way):
        if given_up_at.get(one.id, _NEVER) > now:
            last |= dict.fromkeys(one.wants, (place, one))
    for place, one in enumerate(due, len(under_way)):
        before = [last[name] for name in one.wants if name in last]
        ahead = max(before, key=lambda found: found[0])[1] if before else None
        result[one.id] = Turn() if ahead is None else Turn(ahead.group, changes_at=given_up_at.get(ahead.id))
        last |= dict.fromkeys(one.wants, (place, one))
    return result


def _over_at(one: Entrant, due: Iterable[Entrant]) -> datetime | None:
    """Return when a group has to make room, None while nothing asks for it."""
    if one.let_go_at is None:
        return None
    ends_at = one.let_go_at + timedelta(seconds=one.patience_s)
    if one.has_node:
        return ends_at
    asked_at = min((other.due_at for other in due if one.wants & other.wants), default=None)
    return None if asked_at is None else max(ends_at, asked_at)


def _under_way(one: Entrant, over_at: datetime | None, now: datetime) -> Turn:
    if one.let_go_at is None:
        return Turn()
    ends_at = one.let_go_at + timedelta(seconds=one.patience_s)
    if ends_at > now:
        return Turn(changes_at=ends_at)
    return Turn(is_over=over_at is not None)


def _extended(pod: Manifest) -> Iterator[str]:
    """Return the names of what a pod asks for beyond CPUs and memory: kinds of accelerators and the like."""
    for container in pod["spec"].get("containers") or ():
        limits: Mapping[str, object] = (container.get("resources") or {}).get("limits") or {}
        yield from (name for name in limits if "/" in name)
