"""How many groups to start, and which to take away, so that enough answer at every moment.

The rules are those of a Deployment's rolling update, as Kubernetes documents them, over groups:

- Groups of the target revision on nodes that stay are *current*; other live groups are *old*. A group on a
  cordoned node is old whatever its revision, which is what makes a node drain lossless.
- There are never more than replicas + max_surge live groups because of us.
- Taking away never leaves fewer than replicas - max_unavailable groups that answer. A group that does not
  answer may go only as far as that still holds once everything current answers; so a broken revision is
  held back by its own unready groups and never takes the old one down.
- Groups that failed are replaced after a back-off that doubles with each failure in a row.
- Among equals the one goes first that costs least: leaving node, not ready, fewest requests, youngest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from stoker_operator.plan.groups import Group

FIRST_BACKOFF_S = 10.0
MAX_BACKOFF_S = 300.0
HEALTHY_AFTER_S = 600.0  # a group that lived this long starts a new count of failures


@dataclass(frozen=True, slots=True)
class Limits:
    """What a rollout may do."""

    num_wanted: int
    max_surge: int
    max_unavailable: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about the groups.

    Args:
        starts: for each group to start, the failures in a row that its predecessors had.
        stops: live groups to take away, with the reason.
        removals: failed groups whose successor starts now or is not wanted.
        wait_until: when the next failed group may be replaced; None when none waits.
    """

    starts: tuple[int, ...]
    stops: tuple[tuple[Group, str], ...]
    removals: tuple[Group, ...]
    wait_until: datetime | None


def decide(all_groups: Sequence[Group], target: str, limits: Limits, now: datetime) -> Decision:
    """Decide what to start and stop.

    Args:
        all_groups: every group, also failed, draining and terminating ones.
        target: revision that is wanted.
        limits: see Limits.
        now: the time.
    """
    live = [group for group in all_groups if group.is_live]
    current = [group for group in live if group.revision == target and not group.is_leaving]
    old = [group for group in live if group.revision != target or group.is_leaving]
    starts, removals, wait_until = _starts(all_groups, len(current), len(old), limits, now)
    stops = _surplus(current, limits.num_wanted) + _outdated(live, current, old, target, limits)
    return Decision(tuple(starts), tuple(stops), tuple(removals), wait_until)


def replace_at(group: Group) -> datetime:
    """Return when a failed group's successor may start: at once, then 10 s, 20 s, 40 s … 300 s later."""
    count = failures_in_a_row(group) - 1
    if count <= 0:
        return group.failed_at
    return group.failed_at + timedelta(seconds=min(FIRST_BACKOFF_S * 2 ** (count - 1), MAX_BACKOFF_S))


def failures_in_a_row(group: Group) -> int:
    """Return how many groups failed up to and with this one."""
    lived_s = (group.failed_at - group.created_at).total_seconds()
    return 1 if lived_s >= HEALTHY_AFTER_S else group.num_restarts + 1


def _starts(
    all_groups: Sequence[Group], num_current: int, num_old: int, limits: Limits, now: datetime
) -> tuple[list[int], list[Group], datetime | None]:
    """Pair the groups to start with the failed groups that they replace."""
    room = limits.num_wanted + limits.max_surge - num_current - num_old
    count = max(0, min(limits.num_wanted - num_current, room))
    failed = [group for group in all_groups if group.is_failed and not group.is_terminating]
    due = [group for group in failed if replace_at(group) <= now]
    waiting = sorted((group for group in failed if replace_at(group) > now), key=replace_at)
    # Groups that wait for their back-off keep their place; what is left may start.
    count = max(0, count - len(waiting))
    starts = [failures_in_a_row(group) for group in due[:count]]
    starts += [0] * (count - len(starts))
    # A due group that nobody replaces now is not wanted, or old ones still fill its place: gone either way.
    removals = list(due)
    if num_current >= limits.num_wanted:
        removals, waiting = failed, []
    return starts, removals, replace_at(waiting[0]) if waiting else None


def _surplus(current: list[Group], num_wanted: int) -> list[tuple[Group, str]]:
    count = max(0, len(current) - num_wanted)
    return [(group, "ScaleDown") for group in sorted(current, key=_cost)[:count]]


def _outdated(
    live: list[Group], current: list[Group], old: list[Group], target: str, limits: Limits
) -> list[tuple[Group, str]]:
    min_available = max(0, limits.num_wanted - limits.max_unavailable)
    num_current = min(len(current), limits.num_wanted)
    num_starting = sum(not group.is_ready for group in sorted(current, key=_cost, reverse=True)[:num_current])
    unready = sorted((group for group in old if not group.is_ready), key=_cost)
    num_free = max(0, num_current + len(old) - min_available - num_starting)
    stops = unready[:num_free]
    num_available = sum(group.is_available for group in old)
    num_available += sum(
        group.is_available for group in sorted(current, key=_cost, reverse=True)[:num_current]
    )
    ready = sorted((group for group in old if group.is_ready), key=_cost)
    stops += ready[: max(0, min(num_available - min_available, num_free - len(stops)))]
    return [(group, "NodeLeaving" if group.revision == target else "Outdated") for group in stops]


def _cost(group: Group) -> tuple[bool, bool, int, float, str]:
    """Order groups by what their loss costs, cheapest first."""
    youth = -group.created_at.timestamp()
    return (not group.is_leaving, group.is_ready, group.num_in_flight or 0, youth, group.name)
