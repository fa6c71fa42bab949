"""`plan(wanted, observed, now)`: the ordered actions that bring the cluster closer to what is wanted. Pure.

Children that all replicas share come first, then new pods, then drains, then deletions. A pod leaves in three
steps, each its own plan: it stops serving, it answers what it has, it is deleted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from stoker_operator.api import labels
from stoker_operator.desired import Wanted, record
from stoker_operator.desired.avoidance import avoid
from stoker_operator.desired.metadata import is_left_behind, owner_reference
from stoker_operator.desired.pod import named_pod
from stoker_operator.observed import Manifest, Observed
from stoker_operator.plan.actions import (
    Action,
    Adopt,
    Apply,
    CreatePod,
    Delete,
    DeletePod,
    Plan,
    Record,
    StopServing,
)
from stoker_operator.plan.deletion import plan_deletion
from stoker_operator.plan.drift import drift
from stoker_operator.plan.groups import Group, Phase, groups
from stoker_operator.plan.ownership import is_orphan, is_ours
from stoker_operator.plan.progress import deadline_at
from stoker_operator.plan.revisions import Revisions, Target, revisions
from stoker_operator.plan.rollout import Decision, Limits, decide
from stoker_operator.plan.successors import Start

# An older reading shows what was. It is renewed every second, so only a process that stood still has one.
FRESH_FOR = timedelta(seconds=10)
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
        can_start=target.template is not None,
    )
    decision = decide(all_groups, target.revision, limits, now)
    draining = [group for group in all_groups if group.phase is Phase.DRAINING]
    finished, drain_waits = _finished(draining, model.spec.service.drain_seconds, now)
    leaving = [*decision.stops, *((group, "LabelChanged") for group in draining if not group.draining_since)]
    stops = list(_stops(leaving, now))
    actions: list[Action] = [
        *_adoptions(wanted, observed),
        *_records(known, target, observed),
        *_shared(wanted, observed, _num_draining(all_groups, stops)),
        *_creations(wanted, observed, target, decision),
        *stops,
        *(
            DeletePod(ref.name, ref.uid, _REMOVED[group.phase])
            for group in decision.removals
            for ref in group.pods
        ),
        *finished,
    ]
    waits = [drain_waits] if drain_waits is not None else []
    if decision.wait_until is not None:
        waits.append(max(0.0, (decision.wait_until - now).total_seconds()))
    waits += [wait_s for group in all_groups if (wait_s := _until_lost(group, now)) > 0]
    stuck_at = deadline_at(all_groups, wanted)
    if stuck_at is not None and stuck_at > now:
        waits.append((stuck_at - now).total_seconds())
    # Nobody answers from a node that does not report.
    uids = frozenset(group.pods[0].uid for group in draining if group.is_reachable)
    return Plan(tuple(actions), min(waits, default=None), uids, tuple(all_groups))


def _until_lost(group: Group, now: datetime) -> float:
    """Seconds until a group whose node fell silent counts as lost, 0 when it does not or already has."""
    return (group.lost_at - now).total_seconds() if group.is_live and group.lost_at is not None else 0.0


def _num_draining(all_groups: list[Group], stops: list[StopServing | DeletePod]) -> int:
    """Count the replicas that drain or are about to: the budget makes up for them before they stop serving.

    Those on their way out count until they are gone, when nobody can still take them for available ones.
    """
    stopping = {stop.name for stop in stops if isinstance(stop, StopServing)}
    return sum(not group.is_serving or group.name in stopping for group in all_groups)


def _shared(wanted: Wanted, observed: Observed, num_draining: int) -> Iterator[Action]:
    """Apply what all pods share where it differs; never touch somebody else's."""
    for child in wanted.children(num_draining):
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


def _records(known: Revisions, target: Target, observed: Observed) -> Iterator[Record | Delete]:
    """Put the newest revision on record; forget those that nothing is of any more."""
    missing = known.missing(target)
    if missing is not None:
        yield Record(missing, "NewRevision")
    for stored in known.unneeded(target, observed.pods):
        metadata = stored["metadata"]
        yield Delete(record.KIND, metadata["name"], metadata["uid"], "NotNeeded")


def _creations(wanted: Wanted, observed: Observed, target: Target, decision: Decision) -> Iterator[CreatePod]:
    if target.template is None:
        return
    taken = {pod["metadata"]["name"] for pod in observed.pods}
    prefix = f"{wanted.model.name}-{target.revision}"
    free = (name for ordinal in itertools.count() if (name := f"{prefix}-{ordinal}") not in taken)
    for start, name in zip(decision.starts, free, strict=False):
        manifest = named_pod(target.template, name, target.revision, start.num_restarts)
        yield CreatePod(name, _placed(manifest, start), "Replaced" if start.num_restarts else "Wanted")


def _placed(manifest: dict[str, Any], start: Start) -> dict[str, Any]:
    """Keep a pod off the nodes that it should avoid, and note in it why."""
    notes = {
        labels.FAILED_ON: ",".join(f"{node}={count}" for node, count in start.failed_on),
        labels.AVOIDS: ",".join(start.avoid),
    }
    annotations = {
        **manifest["metadata"]["annotations"],
        **{key: text for key, text in notes.items() if text},
    }
    metadata = {**manifest["metadata"], "annotations": annotations}
    return {**manifest, "metadata": metadata, "spec": avoid(manifest["spec"], start.avoid)}


def _stops(leaving: list[tuple[Group, str]], now: datetime) -> Iterator[StopServing | DeletePod]:
    """Begin the drains: of what is to go, and of what somebody else took out of the Service."""
    # To the millisecond: a second cut off here would be one less to settle.
    since = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for group, reason in leaving:
        for ref in group.pods:
            if group.has_answered:
                yield StopServing(ref.name, ref.uid, since, reason)
            else:
                yield DeletePod(ref.name, ref.uid, reason)


def _finished(draining: list[Group], settle_s: float, now: datetime) -> tuple[list[DeletePod], float | None]:
    """Return the deletions of groups that have drained, and when to look at the others again.

    After a pod stops serving, nodes and load balancers may send it requests until they all know; only then
    does an empty engine mean that nothing more comes.
    """
    deletions: list[DeletePod] = []
    waits: list[float] = []
    for group in draining:
        since = group.draining_since
        if since is None:
            continue
        settled_at = since + timedelta(seconds=settle_s)
        late_at = since + timedelta(seconds=group.grace_s)
        reason = _why_finished(group, settled_at, late_at, now)
        if settled_at <= now and reason is not None:
            deletions += [DeletePod(ref.name, ref.uid, reason) for ref in group.pods]
            continue
        wait_s = ((settled_at if settled_at > now else late_at) - now).total_seconds()
        waits.append(wait_s)
    return deletions, min(waits, default=None)


def _why_finished(group: Group, settled_at: datetime, late_at: datetime, now: datetime) -> str | None:
    """Return why a draining group may be deleted: it was seen empty, cannot have requests, or is late."""
    is_current = group.read_at is not None and group.read_at >= max(settled_at, now - FRESH_FOR)
    if group.num_in_flight == 0 and is_current:
        return "Drained"
    if not group.has_answered:
        return "EngineNotRunning"
    return "DrainDeadline" if late_at <= now else None


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
        if is_foreign(pod) and pod["metadata"].get("labels", {}).get(labels.ROLE) == labels.LEADER:
            return (
                f"Pod {pod['metadata']['name']} carries our labels and does not belong to this {labels.KIND}"
            )
    return None
