"""Who follows a group that failed or got lost: when, where not, and with which past.

What is known of a group's past stands in annotations of its successor, since its pods are gone by then: how
many failed in a row, and on which nodes. The past ends with a group that answered and lived for
HEALTHY_AFTER_S.

- The first failure is replaced at once, the next after 10 s, 20 s, 40 s … 300 s. So are lost groups: one
  whose successor is lost as well has most likely no better place.
- After FAILURES_PER_NODE failures on one node a successor is kept off it, and always off the nodes of groups
  that are lost now, and off those that leave where no taint would do it; of the last MAX_AVOIDED nodes, so
  that nobody runs out of nodes for good.
- One that has found no other node within STRANDED_AFTER_S is replaced by one that may go anywhere.
- One of several pods that did not find nodes for all of them while it was its turn (see turns) is replaced at
  once by one that waits behind its gate, and so holds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from stoker_operator.plan.groups import Group, Phase
from stoker_operator.plan.pods import tolerates_everything

FIRST_BACKOFF_S = 10.0
MAX_BACKOFF_S = 300.0
HEALTHY_AFTER_S = 600.0  # a group that answered and lived this long starts a new count of failures
FAILURES_PER_NODE = 2
MAX_AVOIDED = 3
MAX_REMEMBERED = 5
STRANDED_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Start:
    """A group to start.

    Args:
        num_restarts: failures in a row that its predecessors had.
        failed_on: on which nodes, with how many each, the last one last.
        avoid: nodes that it must not go to.
        num_turns: of its predecessors in a row that found no nodes for all their pods.
    """

    num_restarts: int = 0
    failed_on: tuple[tuple[str, int], ...] = ()
    avoid: tuple[str, ...] = ()
    num_turns: int = 0


@dataclass(frozen=True, slots=True)
class Succession:
    """What follows.

    Args:
        starts: groups to start.
        removals: failed and stranded groups whose successor starts now or is not wanted.
        wait_until: when the next one may be replaced; None when none waits.
    """

    starts: tuple[Start, ...] = ()
    removals: tuple[Group, ...] = ()
    wait_until: datetime | None = None


def succession(
    all_groups: Sequence[Group], target: str, num_missing: int, room: int, now: datetime
) -> Succession:
    """Pair the groups to start with the groups that they replace.

    Args:
        all_groups: every group.
        target: revision that new groups get; what failed of another one tells nothing about it and just goes.
        num_missing: groups that are wanted and not there.
        room: how many may be started at most.
        now: the time.
    """
    failed = [group for group in all_groups if group.phase is Phase.FAILED]
    stranded = [group for group in all_groups if is_stranded(group, now)]
    if not num_missing:
        return Succession(removals=(*failed, *stranded))
    same = [group for group in (*stranded, *failed) if group.revision == target]
    same += _unreplaced(all_groups, target, num_missing - len(same))
    due = [group for group in same if replace_at(group) <= now]
    waiting = sorted((group for group in same if replace_at(group) > now), key=replace_at)
    # Groups that wait for their back-off keep their place; what is left may start.
    count = max(0, min(num_missing - len(waiting), room))
    closed = _nodes_to_avoid(all_groups)
    starts = [_after(group, closed) for group in due[:count]]
    starts += [Start(avoid=closed)] * (count - len(starts))
    # Without room the due ones stay: they hold the count of failures.
    # One that was lost before it answered has nothing that anybody could wait for.
    removals = [group for group in due[:count] if group.phase is not Phase.LOST or group.is_new]
    removals += [group for group in (*failed, *stranded) if group.revision != target]
    # Whoever had its turn makes room, with a successor or without.
    removals += [group for group in stranded if group.is_over and group not in removals]
    return Succession(tuple(starts), tuple(removals), replace_at(waiting[0]) if waiting else None)


def replace_at(group: Group) -> datetime:
    """Return when a group's successor may start: at once, then 10 s, 20 s, 40 s … 300 s later."""
    if group.is_over or group.phase is Phase.STARTING:
        return group.created_at  # it is only stranded
    count = failures_in_a_row(group) - 1
    if count <= 0:
        return group.failed_at
    doubled_s = FIRST_BACKOFF_S * 2.0 ** min(count - 1, 30)
    return group.failed_at + timedelta(seconds=min(doubled_s, MAX_BACKOFF_S))


def failures_in_a_row(group: Group) -> int:
    """Return how many groups failed up to and with this one."""
    return 1 if _was_healthy(group) else group.num_restarts + 1


def stranded_at(group: Group) -> datetime | None:
    """Return when a group will have looked for a node beside those it is kept off for long enough."""
    is_looking = group.phase is Phase.STARTING and group.avoids and not group.is_scheduled
    since = group.let_go_at or group.created_at
    return since + timedelta(seconds=STRANDED_AFTER_S) if is_looking else None


def is_stranded(group: Group, now: datetime) -> bool:
    """Whether a group found no node beside those that it is kept off, or not enough while it was its turn."""
    at = stranded_at(group)
    return group.is_over or (at is not None and at <= now)


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


def _after(group: Group, closed: tuple[str, ...]) -> Start:
    """Return the successor of a group."""
    if group.is_over or group.phase is Phase.STARTING:
        num_turns = group.num_turns + group.is_over
        return Start(group.num_restarts, tuple(group.failed_on.items()), num_turns=num_turns)
    past = {} if _was_healthy(group) else dict(group.failed_on)
    # One that crashed again and again had all its chances there.
    num_failures = FAILURES_PER_NODE if group.is_crash_looping else 1
    for node in group.nodes:
        past[node] = past.pop(node, 0) + num_failures
    failed_on = tuple(past.items())[-MAX_REMEMBERED:]
    bad = [node for node, count in failed_on if count >= FAILURES_PER_NODE]
    return Start(failures_in_a_row(group), failed_on, _last([*bad, *closed], MAX_AVOIDED))


def _last(names: list[str], most: int) -> tuple[str, ...]:
    """Return so many of the names, each once, those that come last."""
    return tuple(reversed(list(dict.fromkeys(reversed(names)))[:most]))
