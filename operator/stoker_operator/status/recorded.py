"""What the records of revisions mean for whoever looks: pods that cannot be made again, and old defaults."""

from __future__ import annotations

from collections.abc import Sequence

from stoker_operator.api import labels
from stoker_operator.desired import Wanted
from stoker_operator.observed import Observed
from stoker_operator.plan.drift import drift
from stoker_operator.plan.groups import Group
from stoker_operator.plan.pasts import noted_pasts
from stoker_operator.plan.revisions import revisions
from stoker_operator.plan.successors import is_given_up
from stoker_operator.profiles import Cause

_MAX_PATHS = 3


def unrecorded(wanted: Wanted, observed: Observed, all_groups: Sequence[Group]) -> Cause | None:
    """Return why missing pods are not made, when it is for lack of a record of their revision.

    Records are ours to write, so somebody deleted it, or the pods are of an operator that wrote none.
    """
    if not wanted.is_held or sum(group.is_live for group in all_groups) >= wanted.scale.num_wanted:
        return None
    target = revisions(wanted, observed).target(all_groups)
    if not target.revision or target.shape is not None:
        return None
    text = (
        f"nothing tells what pods of revision {target.revision} were made from, since its ControllerRevision "
        "is gone: those that are there stay, and the missing ones come with the new revision once "
        "spec.rollout.paused is false"
    )
    return Cause("RevisionUnrecorded", text)


def given_up(wanted: Wanted, observed: Observed) -> Cause | None:
    """Return which groups of the wanted revision nobody replaces any more."""
    if not any(labels.FAILURES in (held["metadata"].get("annotations") or ()) for held in observed.revisions):
        return None
    stored = revisions(wanted, observed).records.get(wanted.revision)
    lost = [past for past in noted_pasts(stored) if is_given_up(past)]
    if not lost:
        return None
    last = lost[-1]
    where = ", ".join(node for node, _ in last.failed_on)
    others = f" (and {len(lost) - 1} more)" if lost[1:] else ""
    text = (
        f"group {last.group}{others} failed {last.num_failures} times in a row, on {where or 'no node'}, and "
        "nothing follows it any more: correct the spec, or annotate the ModelDeployment with "
        f"{labels.RESTARTED_AT} to try again"
    )
    return Cause("RestartBudgetExhausted", text)


def outdated(wanted: Wanted, observed: Observed) -> Cause | None:
    """Return where pods of the wanted revision differ from what this operator would make of the same spec.

    Its record is an earlier operator's, or one with other settings: another runtime image, another mirror.
    """
    known = revisions(wanted, observed)
    shape = known.shape(wanted.revision)
    if shape is None or wanted.shape is None or shape == wanted.shape:
        return None
    stored = known.records[wanted.revision]
    paths = [
        path
        for rank in range(min(wanted.shape.size, 2))
        for part in ("metadata", "spec")
        for path in drift({part: wanted.shape.template(rank)[part]}, shape.template(rank))
    ]
    if not paths:
        return None
    where = ", ".join(paths[:_MAX_PATHS]) + (
        f" and {len(paths) - _MAX_PATHS} more" if paths[_MAX_PATHS:] else ""
    )
    maker = (stored.get("data") or {}).get("operatorVersion")
    text = (
        f"pods are made as operator {maker} recorded them, which differs from this operator's defaults at "
        f"{where}: annotate the ModelDeployment with {labels.RESTARTED_AT} to take those"
    )
    return Cause("DefaultsOutdated", text)
