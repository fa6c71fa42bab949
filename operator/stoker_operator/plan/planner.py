"""`plan(wanted, observed, now)`: the ordered actions that bring the cluster closer to what is wanted. Pure.

What all pods share comes first, then new groups, then drains, then deletions.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from stoker_operator.api import labels
from stoker_operator.desired import Wanted, record
from stoker_operator.desired.children import Headcount
from stoker_operator.desired.metadata import is_left_behind, owner_reference
from stoker_operator.observed import Manifest, Observed
from stoker_operator.plan.actions import Action, Adopt, Apply, Create, Delete, Patch, Purpose
from stoker_operator.plan.deletion import plan_deletion
from stoker_operator.plan.drains import finished
from stoker_operator.plan.drift import drift
from stoker_operator.plan.groups import Group, Phase, groups
from stoker_operator.plan.ownership import is_orphan, is_ours
from stoker_operator.plan.pasts import noted_pasts, pasts_text
from stoker_operator.plan.progress import deadline_at
from stoker_operator.plan.revisions import Revisions, Target, revisions
from stoker_operator.plan.rollout import Decision, Limits, decide
from stoker_operator.plan.starts import completions, starts
from stoker_operator.plan.steps import Move, Plan, Step, leave, remove

# Why a group is removed that is neither drained nor of the wrong revision, by its phase.
_REMOVED = {Phase.FAILED: "Failed", Phase.LOST: "NodeNotReady", Phase.STARTING: "NoOtherNode"}


def plan(wanted: Wanted, observed: Observed, now: datetime) -> Plan:
    """Decide what to do next.

    Args:
        wanted: what should exist.
        observed: what the caches hold, with the requests in flight of draining pods where they are known.
        now: the time, with a time zone.

    Returns:
        Nothing to do but at most waiting, once the cluster is as wanted.
    """
    model = wanted.model
    if model.is_deleting:
        return plan_deletion(observed)
    all_groups = groups(observed, now)
    known = revisions(wanted, observed)
    target = known.target(all_groups)
    if not target.revision:
        return Plan()
    limits = Limits(
        wanted.scale.num_wanted,
        wanted.scale.max_surge,
        wanted.scale.max_unavailable,
        is_held=target.is_held,
        can_start=target.shape is not None,
    )
    on_record = known.records.get(target.revision)
    decision = decide(all_groups, target.revision, limits, now, noted_pasts(on_record))
    draining = [group for group in all_groups if group.phase is Phase.DRAINING]
    emptied, drain_waits = finished(draining, model.spec.service.drain_seconds, now)
    leaving = [*decision.stops, *((group, "LabelChanged") for group in draining if not group.draining_since)]
    leaves = [leave(group, reason, now) for group, reason in leaving]
    shared: list[Action] = [
        *_adoptions(wanted, observed),
        *_records(known, target, observed),
        *_notes(on_record, decision),
        *_shared(wanted, observed, _headcount(wanted, all_groups, leaves)),
    ]
    steps = [
        *completions(_staying(all_groups, decision), known, now),
        *starts(model.name, observed, target, decision.starts, decision.noted),
        *leaves,
        *(remove(group, "NoRoom" if group.is_over else _REMOVED[group.phase]) for group in decision.removals),
        *emptied,
    ]
    waits = [drain_waits] if drain_waits is not None else []
    if decision.wait_until is not None:
        waits.append(max(0.0, (decision.wait_until - now).total_seconds()))
    waits += [wait_s for group in all_groups if (wait_s := _until_lost(group, now)) > 0]
    changes = (group.turn.changes_at for group in all_groups)
    waits += [(at - now).total_seconds() for at in changes if at is not None and at > now]
    stuck_at = deadline_at(all_groups, wanted)
    if stuck_at is not None and stuck_at > now:
        waits.append((stuck_at - now).total_seconds())
    # Nobody answers from a node that does not report.
    leaders = (group.leader for group in draining if group.is_reachable)
    uids = frozenset(leader.uid for leader in leaders if leader is not None and leader.is_staying)
    return Plan(tuple(shared), tuple(steps), min(waits, default=None), uids, tuple(all_groups))


def _notes(on_record: Manifest | None, decision: Decision) -> Iterator[Patch]:
    """Have the record tell what the successors of groups that are gone are to know."""
    if on_record is None or noted_pasts(on_record) == decision.noted:
        return
    metadata, text = on_record["metadata"], pasts_text(decision.noted)
    body = {"metadata": {"annotations": {labels.FAILURES: text or None}}}
    yield Patch(record.KIND, metadata["name"], metadata["uid"], body, Purpose.NOTE, "GroupFailed")


def _until_lost(group: Group, now: datetime) -> float:
    """Seconds until a group whose node fell silent counts as lost, 0 when it does not or already has."""
    return (group.lost_at - now).total_seconds() if group.is_live and group.lost_at is not None else 0.0


def _staying(all_groups: list[Group], decision: Decision) -> list[Group]:
    """Return the groups that nobody is about to take away."""
    leaving = {group.name for group, _ in decision.stops} | {group.name for group in decision.removals}
    return [group for group in all_groups if group.name not in leaving]


def _headcount(wanted: Wanted, all_groups: list[Group], leaves: list[Step]) -> Headcount:
    """Count the pods that drain or are about to: the budget makes up for them before they stop serving.

    Those on their way out count until they are gone, when nobody can still take them for available ones.
    """
    stopping = {step.group for step in leaves if step.move is Move.DRAIN}
    leaving = [group for group in all_groups if not group.is_serving or group.name in stopping]
    sizes = [group.size for group in all_groups if group.is_live]
    if wanted.shape is not None:
        sizes.append(wanted.shape.size)
    return Headcount(max(sizes, default=1), sum(len(group.members) for group in leaving))


def _shared(wanted: Wanted, observed: Observed, headcount: Headcount) -> Iterator[Action]:
    """Apply what all pods share where it differs; never touch somebody else's."""
    for child in wanted.children(headcount):
        manifest, existing = child.manifest, observed.children.get((child.kind, child.name))
        if existing is not None and not is_ours(existing, observed.model):
            continue
        if manifest is not None:
            paths = drift(manifest, existing) if existing is not None else ["missing"]
            if paths:
                yield Apply(manifest, tuple(paths), "Missing" if existing is None else "Drift")
        elif existing is not None and "deletionTimestamp" not in existing["metadata"]:
            metadata = existing["metadata"]
            yield Delete(child.kind, metadata["name"], metadata["uid"], "NotNeeded")


def _adoptions(wanted: Wanted, observed: Observed) -> Iterator[Adopt]:
    """Become the controller of pods and records of ours that have none; an apply does it for the others."""
    for kind, found in (("Pod", observed.pods), (record.KIND, observed.revisions)):
        for orphan in found:
            if is_orphan(orphan, observed.model):
                metadata = orphan["metadata"]
                references = (*(metadata.get("ownerReferences") or ()), owner_reference(wanted.model))
                yield Adopt(
                    kind, metadata["name"], metadata["uid"], metadata.get("resourceVersion", ""), references
                )


def _records(known: Revisions, target: Target, observed: Observed) -> Iterator[Create | Delete]:
    """Put the newest revision on record; forget those that nothing is of any more."""
    missing = known.missing(target)
    if missing is not None:
        yield Create(missing, "NewRevision")
    for stored in known.unneeded(target, observed.pods):
        metadata = stored["metadata"]
        yield Delete(record.KIND, metadata["name"], metadata["uid"], "NotNeeded")


def name_conflict(wanted: Wanted, observed: Observed) -> str | None:
    """Return what stands in our way under a name that we need, or None.

    What an earlier ModelDeployment of this name left behind only has to be waited for.
    """

    def is_foreign(existing: Manifest) -> bool:
        return not (is_ours(existing, observed.model) or is_left_behind(existing, wanted.model))

    for child in wanted.children():
        existing = observed.children.get((child.kind, child.name))
        if child.manifest is not None and existing is not None and is_foreign(existing):
            return f"{child.kind} {child.name} exists and does not belong to this {labels.KIND}"
    for pod in observed.pods:
        if is_foreign(pod) and pod["metadata"].get("labels", {}).get(labels.ROLE) in labels.ROLES:
            return (
                f"Pod {pod['metadata']['name']} carries our labels and does not belong to this {labels.KIND}"
            )
    return None
