"""When a rollout should have got on: `spec.rollout.progressDeadlineSeconds`, as a Deployment's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from stoker_operator.desired import Wanted
from stoker_operator.plan.groups import Group
from stoker_operator.plan.pods import condition_times


def deadline_at(all_groups: Sequence[Group], wanted: Wanted) -> datetime | None:
    """Return when the wanted revision counts as stuck, unless a pod of it comes further before.

    To come further is to be created, get a node, have its containers created, become ready; a pod that
    follows one that failed is no step. Nothing is due while a rollout is held, while enough pods answer, and
    when none is on its way: one that answered once and does not now is no matter of a rollout.
    """
    model = wanted.model
    updated = [group for group in all_groups if group.is_live and group.revision == wanted.revision]
    is_enough = sum(group.is_available for group in updated) >= wanted.scale.num_wanted
    if wanted.is_held or is_enough or not any(group.is_coming for group in updated):
        return None
    steps = [at for group in updated for at in _steps(group)]
    deadline = timedelta(seconds=model.spec.rollout.progress_deadline_seconds)
    return max(steps) + deadline if steps else None


def _steps(group: Group) -> list[datetime]:
    if group.num_restarts and not group.is_available:
        return []
    times = [condition_times(member.pod, "True") for member in group.members]
    return [group.created_at, *(time for found in times for time in found)]
