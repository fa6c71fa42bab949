"""Who follows a group that failed or got lost: when, where not, and with which past.

What is known of a group's past stands in annotations of its successor, since its pods are gone by then: how
many failed in a row, and on which nodes; of groups of several meanwhile on the record (see `pasts`). The past
ends with a group that answered and lived for HEALTHY_AFTER_S.

- The first failure is replaced at once, the next after 10 s, 20 s, 40 s … 300 s. So are lost groups: one
  whose successor is lost as well has most likely no better place.
- After FAILURES_PER_NODE failures on one node a successor is kept off it, and always off the nodes of groups
  that are lost now, and off those that leave where no taint would do it; of the last MAX_AVOIDED nodes, so
  that nobody runs out of nodes for good.
- A group of several that failed MAX_IN_A_ROW times is given up: it would take its accelerators from others
  for ever. A single pod never is.
- One that has found no other node within STRANDED_AFTER_S is replaced by one that may go anywhere.
- One of several pods that did not find nodes for all of them while it was its turn (see turns) is replaced at
  once by one that waits behind its gate, and so holds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from stoker_operator.plan.groups import Group, Phase
from stoker_operator.plan.pasts import MAX_NOTED, Past
from stoker_operator.plan.pods import MAX_COUNT, tolerates_everything

FIRST_BACKOFF_S = 10.0
MAX_BACKOFF_S = 300.0
HEALTHY_AFTER_S = 600.0  # a group that answered and lived this long starts a new count of failures
FAILURES_PER_NODE = 2
MAX_AVOIDED = 3
MAX_REMEMBERED = 5
STRANDED_AFTER_S = 60.0
MAX_IN_A_ROW = 10  # failures; with the back-off between them they take more than twenty minutes


@dataclass(frozen=True, slots=True)
class Start:
    """A group to start.

    Args:
        num_restarts: failures in a row that its predecessors had.
        failed_on: on which nodes, with how many each, the last one last.
        avoid: nodes that it must not go to.
        successor_of: the failed group of several whose place it takes.
        num_turns: of its predecessors in a row that found no nodes for all their pods.
    """

    num_restarts: int = 0
    failed_on: tuple[tuple[str, int], ...] = ()
    avoid: tuple[str, ...] = ()
    successor_of: str = ""
    num_turns: int = 0


@dataclass(frozen=True, slots=True)
class Succession:
    """What follows.

    Args:
        starts: groups to start.
        removals: failed and stranded groups whose successor starts now or is not wanted, and those whose past
            is noted.
        wait_until: when the next one may be replaced; None when none waits.
        noted: the pasts that are to stand on the record.
    """

    starts: tuple[Start, ...] = ()
    removals: tuple[Group, ...] = ()
    wait_until: datetime | None = None
    noted: tuple[Past, ...] = ()


def succession(
    all_groups: Sequence[Group],
    target: str,
    num_missing: int,
    room: int,
    now: datetime,
    noted: Sequence[Past] = (),
) -> Succession:
    """Pair the groups to start with the groups that they replace.

    Args:
        all_groups: every group.
        target: revision that new groups get; what failed of another one tells nothing about it and just goes.
        num_missing: groups that are wanted and not there.
        room: how many may be started at most.
        now: the time.
        noted: pasts on the target's record.
    """
    failed = [group for group in all_groups if group.phase is Phase.FAILED]
    stranded = [group for group in all_groups if is_stranded(group, now)]
    if not num_missing:
        return Succession(removals=(*failed, *stranded))
    followed = {group.successor_of for group in all_groups if group.revision == target}
    noted = _of_missing(all_groups, followed, noted, now)
    told = followed | {past.group for past in noted}
    on_record = [group for group in failed if group.size > 1 and group.revision == target]
    unnoted = [group for group in on_record if group.name not in told]
    given_up = tuple(past for past in noted if is_given_up(past))[:num_missing]
    same = [group for group in (*stranded, *failed) if group.revision == target and group not in on_record]
    same += _unreplaced(all_groups, target, num_missing - len(same) - len(noted) - len(unnoted))
    places = [_Place(_past(group), group) for group in same]
    places += [_Place(past) for past in noted if past not in given_up]
    due = [place for place in places if place.at <= now]
    waiting = sorted((place for place in places if place.at > now), key=lambda place: place.at)
    # Groups that wait for their back-off keep their place, and so do those given up; what is left may start.
    num_kept = len(waiting) + len(given_up) + len(unnoted)
    count = max(0, min(num_missing - num_kept, room))
    closed = _nodes_to_avoid(all_groups)
    starts = [_after(place, closed) for place in due[:count]]
    starts += [Start(avoid=closed)] * (count - len(starts))
    # Without room the due ones stay: they hold the count of failures.
    # One that was lost before it answered has nothing that anybody could wait for.
    replaced = [place.group for place in due[:count] if place.group is not None]
    removals = [group for group in replaced if group.phase is not Phase.LOST or group.is_new]
    removals += [group for group in (*failed, *stranded) if group.revision != target]
    removals += [group for group in on_record if group.name in told]
    # Whoever had its turn makes room, with a successor or without.
    removals += [group for group in stranded if group.is_over and group not in removals]
    wait_until = waiting[0].at if waiting else None
    pasts = (*noted, *(_past(group, now) for group in unnoted))
    return Succession(tuple(starts), tuple(removals), wait_until, pasts[-MAX_NOTED:])


@dataclass(frozen=True, slots=True)
class _Place:
    """A failed or stranded group whose successor may start; None when only its past is left."""

    past: Past
    group: Group | None = None

    @property
    def at(self) -> datetime:
        """When that is: at once, then 10 s, 20 s, 40 s … 300 s after the failure."""
        if self.group is not None and _has_not_failed(self.group):
            return self.group.created_at  # it is only stranded
        count = self.past.num_failures - 1
        if count <= 0:
            return self.past.failed_at
        doubled_s = FIRST_BACKOFF_S * 2.0 ** min(count - 1, 30)
        return self.past.failed_at + timedelta(seconds=min(doubled_s, MAX_BACKOFF_S))


def is_given_up(past: Past) -> bool:
    """Whether nobody follows a group of several any more."""
    return past.num_failures >= MAX_IN_A_ROW


def failures_in_a_row(group: Group) -> int:
    """Return how many groups failed up to and with this one."""
    return 1 if _was_healthy(group) else min(group.num_restarts + 1, MAX_COUNT)


def _of_missing(
    all_groups: Sequence[Group], followed: set[str], noted: Sequence[Past], now: datetime
) -> tuple[Past, ...]:
    """Leave out the pasts whose group has a successor, or is itself back."""
    back = {group.name for group in all_groups if group.is_live and not is_stranded(group, now)}
    return tuple(past for past in noted if past.group not in followed | back)


def _past(group: Group, now: datetime | None = None) -> Past:
    """Return what a successor is to know; of a group that failed just now, whatever its pods tell."""
    past = {} if _was_healthy(group) else dict(group.failed_on)
    # One that crashed again and again had all its chances there.
    num_failures = FAILURES_PER_NODE if group.is_crash_looping else 1
    for node in group.nodes:
        past[node] = past.pop(node, 0) + num_failures
    failed_on = tuple(past.items())[-MAX_REMEMBERED:]
    return Past(group.name, failures_in_a_row(group), failed_on, now or group.failed_at)


def stranded_at(group: Group) -> datetime | None:
    """Return when a group will have looked for a node beside those it is kept off for long enough."""
    is_looking = group.phase is Phase.STARTING and group.avoids and not group.is_scheduled
    since = group.let_go_at or group.created_at
    return since + timedelta(seconds=STRANDED_AFTER_S) if is_looking else None


def is_stranded(group: Group, now: datetime) -> bool:
    """Whether a group found no node beside those that it is kept off, or not enough while it was its turn."""
    at = stranded_at(group)
    return group.is_over or (at is not None and at <= now)


def _has_not_failed(group: Group) -> bool:
    """Tell of a group that is to be replaced whether it is only stranded."""
    return group.is_over or group.phase is Phase.STARTING


def _was_healthy(group: Group) -> bool:
    return not group.is_new and (group.failed_at - group.created_at).total_seconds() >= HEALTHY_AFTER_S


def _unreplaced(all_groups: Sequence[Group], target: str, most: int) -> list[Group]:
    """Return the lost groups that nobody stands in for: those that were lost last in their row."""
    lost = [group for group in all_groups if group.phase is Phase.LOST and group.revision == target]
    lost.sort(key=lambda group: (failures_in_a_row(group), group.failed_at), reverse=True)
    return lost[: max(0, most)]


def _nodes_to_avoid(all_groups: Iterable[Group]) -> tuple[str, ...]:
    """Return the nodes that no new group should go to: lost ones, leaving ones that no taint closes."""
    groups = sorted(all_groups, key=lambda group: group.failed_at)
    lost = [group for group in groups if group.phase is Phase.LOST]
    leaving = [group for group in groups if group.is_leaving and tolerates_everything(group.members[0].pod)]
    return _last([node for group in (*leaving, *lost) for node in group.nodes], MAX_AVOIDED)


def _after(place: _Place, closed: tuple[str, ...]) -> Start:
    """Return the successor of a group."""
    group, past = place.group, place.past
    if group is not None and _has_not_failed(group):
        num_turns = group.num_turns + group.is_over
        return Start(
            group.num_restarts,
            tuple(group.failed_on.items()),
            successor_of=group.successor_of,
            num_turns=num_turns,
        )
    bad = [node for node, count in past.failed_on if count >= FAILURES_PER_NODE]
    avoided = _last([*bad, *closed], MAX_AVOIDED)
    return Start(past.num_failures, past.failed_on, avoided, "" if group else past.group)


def _last(names: list[str], most: int) -> tuple[str, ...]:
    """Return so many of the names, each once, those that come last."""
    return tuple(reversed(list(dict.fromkeys(reversed(names)))[:most]))
