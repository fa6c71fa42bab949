"""Who of our own holds what a pod waits for: a rollout on a full cluster can be its own obstacle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from stoker_operator.observed import Manifest
from stoker_operator.plan.groups import Group
from stoker_operator.profiles import Cause
from stoker_operator.status.causes import PodState

_LACKING = re.compile(r"Insufficient ([A-Za-z0-9./_-]*[A-Za-z0-9])")  # the scheduler's words
_ADVICE = (
    "to take it away first, and serve with one less meanwhile, set spec.rollout to "
    "maxSurge: 0, maxUnavailable: 1, or free or add what is lacking"
)


def name_holders(states: list[PodState], live: list[Group], revision: str) -> list[PodState]:
    """Say of each pod without a node which pod of an older revision holds what it lacks, if one does.

    Args:
        states: of the pods of the current revision.
        live: all groups that count.
        revision: the current one.
    """
    older = [group for group in live if group.revision != revision and group.is_scheduled]
    return [_told(state, older) for state in states]


def _told(state: PodState, older: list[Group]) -> PodState:
    cause = state.cause
    if cause is None or cause.reason != "Unschedulable":
        return state
    for resource in _LACKING.findall(cause.message):
        for group in older:
            if any(resource in _requested(pod) for pod in (member.pod for member in group.members)):
                own = f"own pod {group.name} of an older revision holds {resource}"
                text = f"{cause.message} The {own} and stays until this one answers: {_ADVICE}"
                return replace(state, cause=Cause(cause.reason, text))
    return state


def _requested(pod: Manifest) -> Iterator[str]:
    for container in pod["spec"]["containers"]:
        yield from (container.get("resources") or {}).get("requests") or {}
