"""How many groups to start, and which to take away, so that enough answer at every moment.

The rules are those of a Deployment's rolling update, as Kubernetes documents them, over groups:

- Groups of the target revision on nodes that stay are *current*; other live groups are *old*. A group on a
  node that leaves is old whatever its revision, which is what makes a node drain lossless.
- There are never more than replicas + max_surge live groups because of us.
- Taking away never leaves fewer than replicas - max_unavailable groups that answer. A group that does not
  answer may go only as far as that still holds once everything current answers; so a broken revision is
  held back by its own unready groups and never takes the old one down.
- A group of another revision that has not answered since its pods were made adds nothing to that and goes at
  once: what it holds may be what its successor waits for. One that answered once and loads again is kept.
- Groups that failed are replaced after a back-off that doubles with each failure in a row (see successors).
- Groups on nodes that do not report are replaced likewise, but deleted only once enough others answer: when
  the network between nodes and API server breaks, every node looks lost while all engines go on answering.
- While a rollout is held, no group goes because of its revision. Groups of any revision count as current once
  they have answered; those of another revision that never did are neither counted nor taken away. With two
  revisions, as many groups as the surge allows may stay, or a pause would take one back.
- Among equals the one goes first that costs least: leaving node, not ready, without a node,
  not yet answering, fewest requests, youngest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from stoker_operator.plan.groups import Group, Phase
from stoker_operator.plan.pasts import Past
from stoker_operator.plan.successors import Start, is_stranded, stranded_at, succession


@dataclass(frozen=True, slots=True)
class Limits:
    """What a rollout may do; `can_start` is False while nothing tells what new groups are made from."""

    num_wanted: int
    max_surge: int
    max_unavailable: int
    is_held: bool = False
    can_start: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about the groups.

    Args:
        starts: groups to start.
        stops: live groups to take away, with the reason.
        removals: failed and stranded groups whose successor starts now or is not wanted, and lost ones that
            are replaced.
        wait_until: when time alone may let the next group be replaced; None when none waits.
        noted: the pasts of failed groups that are to stand on the target's record.
    """

    starts: tuple[Start, ...]
    stops: tuple[tuple[Group, str], ...]
    removals: tuple[Group, ...]
    wait_until: datetime | None
    noted: tuple[Past, ...] = ()


def decide(
    all_groups: Sequence[Group], target: str, limits: Limits, now: datetime, noted: Sequence[Past] = ()
) -> Decision:
    """Decide what to start and stop.

    Args:
        all_groups: every group, also failed, draining and terminating ones.
        target: revision that new groups get.
        limits: see Limits.
        now: the time.
        noted: pasts of failed groups on the target's record.
    """
    live = [group for group in all_groups if group.is_live and not is_stranded(group, now)]
    staying = [group for group in live if not group.is_leaving]
    current = [
        group for group in staying if group.revision == target or (limits.is_held and group.has_answered)
    ]
    may_go = [
        group for group in live if group.is_leaving or (group.revision != target and not limits.is_held)
    ]
    room = max(0, limits.num_wanted + limits.max_surge - len(live)) if limits.can_start else 0
    num_missing = max(0, limits.num_wanted - len(current))
    follow = succession(all_groups, target, num_missing, room, now, noted)
    removals = list(follow.removals)
    if not limits.can_start:
        # Nobody can follow them, so nobody needs what they know.
        removals += [group for group in all_groups if group.phase is Phase.FAILED and group.size > 1]
    if sum(group.is_available for group in live) >= limits.num_wanted:
        removals += [group for group in all_groups if group.phase is Phase.LOST]
    if limits.is_held:
        surplus = _surplus(staying, _most_held(staying, limits))
    else:
        surplus = _surplus(current, limits.num_wanted)
    is_useless = {group.name for group in may_go if _is_useless(group, target, limits)}
    useless = [(group, "Outdated") for group in may_go if group.name in is_useless]
    may_go = [group for group in may_go if group.name not in is_useless]
    stops = surplus + useless + _outdated(current, may_go, limits)
    waits = [follow.wait_until, *(stranded_at(group) for group in live)]
    wait_until = min((at for at in waits if at is not None), default=None)
    return Decision(follow.starts, tuple(stops), tuple(removals), wait_until, follow.noted)


def _most_held(staying: list[Group], limits: Limits) -> int:
    is_mixed = len({group.revision for group in staying}) > 1
    return limits.num_wanted + (limits.max_surge if is_mixed and limits.num_wanted else 0)


def _surplus(staying: list[Group], most: int) -> list[tuple[Group, str]]:
    count = len(staying) - most
    return [(group, "ScaleDown") for group in sorted(staying, key=_cost)[:count]] if count > 0 else []


def _is_useless(group: Group, target: str, limits: Limits) -> bool:
    """Tell whether nothing is lost with a group; one that only leaves its node may yet serve on it."""
    return group.is_coming and group.revision != target and not limits.is_held


def _outdated(current: list[Group], may_go: list[Group], limits: Limits) -> list[tuple[Group, str]]:
    """Choose what can be spared now of the groups that may go.

    Two promises hold afterwards, where they held before:

    - `must_answer` groups answer at this moment;
    - `must_answer` groups could answer without a kept one getting ready, if only those that are left of
      `may_go` do. So a group that does not answer now, and may in a moment, is no free gift to a revision
      that never gets ready.
    """
    if not may_go:
        return []
    must_answer = max(0, limits.num_wanted - limits.max_unavailable)
    kept = sorted(current, key=_cost, reverse=True)[: limits.num_wanted]
    num_kept_answering = sum(group.is_available for group in kept)
    cheapest = sorted(may_go, key=_cost)
    silent = [group for group in cheapest if not group.is_available]
    answering = [group for group in cheapest if group.is_available]
    num_spare = max(0, num_kept_answering + len(may_go) - must_answer)
    num_spare_now = max(0, num_kept_answering + len(answering) - must_answer)
    stops = silent[:num_spare]
    stops += answering[: min(num_spare_now, num_spare - len(stops))]
    return [(group, "NodeLeaving" if group.is_leaving else "Outdated") for group in stops]


def _cost(group: Group) -> tuple[bool, bool, bool, bool, int, float, str]:
    """Order groups by what their loss costs, cheapest first."""
    progress = (group.is_available, group.is_scheduled, group.has_answered)
    youth = -group.created_at.timestamp()
    return (not group.is_leaving, *progress, group.num_in_flight or 0, youth, group.name)
