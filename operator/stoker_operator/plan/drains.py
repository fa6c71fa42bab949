"""When a group that drains may be deleted.

It leaves in three steps, each its own plan: it stops serving, it answers what it has, it is deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from stoker_operator.plan.groups import Group
from stoker_operator.plan.steps import Step, remove

# An older reading shows what was. It is renewed every second, so only a process that stood still has one.
FRESH_FOR = timedelta(seconds=10)


def finished(draining: Sequence[Group], settle_s: float, now: datetime) -> tuple[list[Step], float | None]:
    """Return the removals of groups that have drained, and when to look at the others again.

    After a pod stops serving, nodes and load balancers may send it requests until they all know; only then
    does an empty engine mean that nothing more comes.
    """
    removals: list[Step] = []
    waits: list[float] = []
    for group in draining:
        since = group.draining_since
        if since is None:
            continue
        settled_at = since + timedelta(seconds=settle_s)
        late_at = since + timedelta(seconds=group.grace_s)
        reason = _why_finished(group, settled_at, late_at, now)
        if settled_at <= now and reason is not None:
            removals.append(remove(group, reason))
            continue
        wait_s = ((settled_at if settled_at > now else late_at) - now).total_seconds()
        waits.append(wait_s)
    return removals, min(waits, default=None)


def _why_finished(group: Group, settled_at: datetime, late_at: datetime, now: datetime) -> str | None:
    """Return why a draining group may be deleted: it was seen empty, cannot have requests, or is late."""
    is_current = group.read_at is not None and group.read_at >= max(settled_at, now - FRESH_FOR)
    if group.num_in_flight == 0 and is_current:
        return "Drained"
    if not group.has_answered:
        return "EngineNotRunning"
    if group.missing:
        return "GroupBroken"
    return "DrainDeadline" if late_at <= now else None
