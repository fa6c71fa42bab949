"""`status(...)`: the whole status, built anew each time from the ModelDeployment and what was observed.

Conditions follow kstatus: Ready always stands there; Reconciling and Stalled are True only while something
is unusual. Ready speaks of the current revision alone: as long as older pods answer in its place, it is
False and says so. While more replicas of a revision are being started it stays True, see `promise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from stoker_operator.api import labels
from stoker_operator.config import OperatorConfig
from stoker_operator.desired import Wanted
from stoker_operator.desired.children import SERVICE
from stoker_operator.desired.metadata import is_owned_by
from stoker_operator.observed import Manifest, Observed
from stoker_operator.plan import name_conflict
from stoker_operator.plan.drift import drift
from stoker_operator.plan.groups import Group, groups, node_of
from stoker_operator.plan.progress import deadline_at
from stoker_operator.plan.successors import failures_in_a_row
from stoker_operator.profiles import Cause, profile_of_pod
from stoker_operator.status.causes import PodState, first_cause, held_back_state, pod_state
from stoker_operator.status.holders import name_holders
from stoker_operator.status.promise import promised
from stoker_operator.status.recorded import given_up, unrecorded
from stoker_operator.status.transient import transient
from stoker_operator.status.view import Aspect, View

_MAX_MESSAGE_LENGTH = 2048


def status(
    wanted: Wanted,
    observed: Observed,
    config: OperatorConfig,
    now: datetime,
    all_groups: Sequence[Group] | None = None,
) -> dict[str, Any]:
    """Return the status that a ModelDeployment should have.

    Args:
        wanted: what should exist.
        observed: what the caches hold, after this pass's writes.
        config: for the cluster's domain.
        now: the time, for conditions whose status changes.
        all_groups: of these observed pods, where they have been told apart already.
    """
    model = wanted.model
    all_groups = groups(observed, now) if all_groups is None else all_groups
    live = [group for group in all_groups if group.is_live]
    updated = [group for group in live if group.revision == wanted.revision]
    states = _states(wanted, observed, all_groups)
    if not (wanted.scale.max_unavailable or wanted.is_held):
        states = name_holders(states, live, wanted.revision)
    late_at = deadline_at(all_groups, wanted)
    num_answering = sum(group.is_available for group in updated)
    view = View(
        model,
        wanted.scale,
        live,
        updated,
        states,
        num_answering,
        sum(len(group.members) for group in all_groups) - sum(len(group.staying) for group in live),
        num_promised=promised(observed.model.get("status") or {}, wanted, num_answering),
        has_service=_has_service(observed),
        misrouted=_misrouted(wanted, observed),
        failure=_failure(observed),
        given_up=given_up(wanted, observed),
        is_late=late_at is not None and late_at <= now,
    )
    blocked = _blocked(wanted, observed) or unrecorded(wanted, observed, all_groups)
    is_harmless = blocked is not None and view.is_promise_kept and _is_of_more_pods(wanted, observed)
    aspects = [
        _ready(view, None if is_harmless else blocked),
        *_progress(view, blocked),
        _scheduled(view),
        _loaded(view),
        *transient(wanted, observed, all_groups),
    ]
    result = {
        "observedGeneration": model.generation,
        "conditions": _dated(aspects, observed.model, model.generation, now),
        "url": _url(wanted, observed, config),
        "revision": wanted.revision,
        "restartedAt": model.restarted_at,
        "replicas": len(live),
        "readyReplicas": sum(group.is_available for group in live),
        "updatedReplicas": len(updated),
        "promisedReplicas": view.num_promised,
        "selector": labels.selector_text(model.name),
    }
    return {name: value for name, value in result.items() if value != ""}


def _url(wanted: Wanted, observed: Observed, config: OperatorConfig) -> str:
    model = wanted.model
    if wanted.invalid is not None:
        # What clients call is the Service as it is, if there is one.
        return str(observed.model.get("status", {}).get("url", ""))
    address = f"http://{model.name}.{model.namespace}.svc.{config.cluster_domain}"
    port = model.spec.service.port
    return address if port == 80 else f"{address}:{port}"


def _misrouted(wanted: Wanted, observed: Observed) -> tuple[str, ...]:
    """Return where the Service, written a moment ago, sends requests elsewhere."""
    manifest, existing = wanted.child(SERVICE), observed.child(SERVICE)
    if manifest is None or existing is None:
        return ()
    decisive = {name: manifest["spec"][name] for name in ("selector", "ports")}
    return tuple(drift({"spec": decisive}, existing))


def _has_service(observed: Observed) -> bool:
    service = observed.child(SERVICE)
    return service is not None and is_owned_by(service, observed.model["metadata"]["uid"])


def _states(wanted: Wanted, observed: Observed, all_groups: Sequence[Group]) -> list[PodState]:
    # Of a pod on its way out it is no news that it is not ready.
    staying = [group for group in all_groups if group.is_serving]
    owned = [(member, group) for group in staying for member in group.staying]
    updated = [(member, group) for member, group in owned if group.revision == wanted.revision]
    return [
        held_back_state(member, group)
        if member.is_held_back
        else pod_state(
            member.pod,
            profile_of_pod(member.pod),
            node_of(member.pod, observed.nodes),
            observed.warnings.get(member.uid),
            failures_in_a_row(group),
        )
        for member, group in updated or owned
    ]


def _blocked(wanted: Wanted, observed: Observed) -> Cause | None:
    """Return what keeps us from writing what is wanted."""
    if wanted.invalid is not None:
        return Cause("InvalidSpec", str(wanted.invalid))
    conflict = name_conflict(wanted, observed)
    if conflict is not None:
        return Cause("NameConflict", f"{conflict}: delete it or rename one of them")
    if observed.refusals:
        refusal = observed.refusals[0]
        if refusal.reason != "Refused":
            return Cause(
                refusal.reason, f"{refusal.what} came back changed and was deleted: {refusal.message}"
            )
        return Cause("Refused", f"the API server refuses {refusal.what}: {refusal.message}")
    return None


def _is_of_more_pods(wanted: Wanted, observed: Observed) -> bool:
    """Tell whether all that is in the way is that pods are refused, which those that answer need not mind."""
    is_served = wanted.invalid is None and name_conflict(wanted, observed) is None
    return is_served and all(refusal.is_of_pod for refusal in observed.refusals)


def _failure(observed: Observed) -> Cause | None:
    failed = observed.failure
    return None if failed is None else Cause("ApiError", f"cannot {failed.what}: {failed.message}")


def _ready(view: View, blocked: Cause | None) -> Aspect:
    if view.is_promise_kept and blocked is None:
        return Aspect("Ready", "True", _all_answer(view))
    return Aspect("Ready", "False", blocked or _why_not_ready(view))


def _all_answer(view: View) -> Cause:
    """Return why Ready holds. That nothing is wanted is as good: kstatus calls what is Ready current."""
    if view.model.spec.suspend:
        return Cause("Suspended", "spec.suspend is true: no replicas are wanted")
    if not view.scale.num_wanted:
        return Cause("ScaledToZero", "no replicas are wanted")
    text = f"{view.num_answering} of {view.scale.num_wanted} replicas answer"
    if view.num_answering < view.scale.num_wanted:
        text += f", and {view.num_promised} are promised until all do"
    return Cause("Ready", text)


def _why_not_ready(view: View) -> Cause:
    counts = f"{view.num_answering} of {view.scale.num_wanted} replicas answer"
    others = view.num_other_answering
    if others:
        counts += (
            f", {others} of an older revision still serve"
            if others > 1
            else ", 1 of an older revision still serves"
        )
    if view.failure is not None:
        return Cause(view.failure.reason, f"{counts}: {view.failure.message}")
    if not view.has_service:
        return Cause("RollingOut", f"{counts}: there is no Service yet")
    if view.misrouted:
        where = ", ".join(view.misrouted)
        text = f"the Service is changed back at {where} whenever it is written, and sends requests elsewhere"
        return Cause("ChangedByAdmission", f"{counts}: {text}")
    if view.model.spec.rollout.paused and not view.updated and view.live:
        return _paused(counts)
    cause = view.given_up or first_cause(view.states)
    if cause is not None:
        return Cause(cause.reason, f"{counts}: {cause.message}")
    if view.model.spec.rollout.paused and others:
        return _paused(counts)
    return Cause("RollingOut", counts)


def _late(view: View) -> Cause | None:
    if not view.is_late:
        return None
    seconds = view.model.spec.rollout.progress_deadline_seconds
    text = f"no pod has come further for {seconds} s (spec.rollout.progressDeadlineSeconds)"
    return Cause("ProgressDeadlineExceeded", f"{text}: {_why_not_ready(view).message}")


def _paused(text: str) -> Cause:
    return Cause("Paused", f"spec.rollout.paused is true: {text}")


def _progress(view: View, blocked: Cause | None) -> list[Aspect]:
    num_wanted = view.scale.num_wanted
    stalled = blocked
    if stalled is None and view.num_answering < num_wanted:
        stalled = view.given_up or first_cause(state for state in view.states if state.is_stalled)
        stalled = stalled or _late(view)
    none = Cause("AsExpected", "nothing stands in the way")
    is_settled = view.is_complete and len(view.live) == num_wanted and not view.num_leftover
    if stalled is not None:
        reconciling = Aspect("Reconciling", "False", Cause(stalled.reason, "see Stalled"))
    elif view.failure is not None:
        reconciling = Aspect("Reconciling", "True", view.failure)
    elif is_settled:
        reconciling = Aspect("Reconciling", "False", Cause("AsExpected", "all is as wanted"))
    elif view.is_paused_between and not view.num_leftover:
        reconciling = Aspect(
            "Reconciling", "False", _paused(f"{len(view.live)} pods of several revisions exist")
        )
    elif view.is_complete:
        text = f"{len(view.live) + view.num_leftover} pods exist, {num_wanted} are wanted"
        reconciling = Aspect("Reconciling", "True", Cause("RemovingPods", text))
    else:
        cause = _why_not_ready(view)
        paused = cause.reason == "Paused"
        reconciling = Aspect("Reconciling", "False" if paused else "True", cause)
    return [reconciling, Aspect("Stalled", "False" if stalled is None else "True", stalled or none)]


def _scheduled(view: View) -> Aspect:
    waiting = [state for state in view.states if not state.is_scheduled]
    for state in waiting:
        if state.cause is not None and state.cause.reason == "Unschedulable":
            return Aspect("Scheduled", "False", state.cause)
    if waiting:
        turn = next((s.cause for s in waiting if s.cause and s.cause.reason == "WaitingForTurn"), None)
        if turn is not None:
            return Aspect("Scheduled", "Unknown", turn)
        return Aspect("Scheduled", "Unknown", Cause("Scheduling", f"{len(waiting)} pods wait for a node"))
    if not view.states:
        return Aspect("Scheduled", "Unknown", Cause("NoPods", "there are no pods"))
    return Aspect("Scheduled", "True", Cause("Scheduled", "every pod has a node"))


def _loaded(view: View) -> Aspect:
    num_loaded = sum(state.is_loaded for state in view.states)
    if not view.states:
        return Aspect("ModelLoaded", "Unknown", Cause("NoPods", "there are no pods"))
    if num_loaded:
        text = f"{num_loaded} of {len(view.states)} pods have loaded the model"
        return Aspect("ModelLoaded", "True", Cause("Loaded", text))
    return Aspect(
        "ModelLoaded", "False", first_cause(view.states) or Cause("LoadingModel", "no pod has it yet")
    )


def _dated(aspects: list[Aspect], stored: Manifest, generation: int, now: datetime) -> list[dict[str, Any]]:
    """Add generation and time: the time moves only when a condition's status does."""
    before = {condition["type"]: condition for condition in stored.get("status", {}).get("conditions", ())}
    conditions = []
    for aspect in aspects:
        old = before.get(aspect.type, {})
        is_same = old.get("status") == aspect.status
        conditions.append(
            {
                "type": aspect.type,
                "status": aspect.status,
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"]
                if is_same
                else now.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "reason": aspect.cause.reason,
                "message": aspect.cause.message[:_MAX_MESSAGE_LENGTH],
            }
        )
    return conditions
