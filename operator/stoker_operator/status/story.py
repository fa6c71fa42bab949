"""Which Events tell a person what happened in a pass. Each says one thing once; the shell counts repeats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stoker_operator.api import labels
from stoker_operator.observed import Manifest
from stoker_operator.plan import Action, Adopt, Apply, Create, Delete, Patch, Purpose


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event about a ModelDeployment.

    Args:
        type: Normal or Warning.
        reason: CamelCase, stable.
        action: what the operator did, CamelCase.
        note: for a person.
    """

    type: str
    reason: str
    action: str
    note: str


# What a person may want to do something about.
_WARNINGS = frozenset({"Unschedulable", "NotReady", "PodFailed"})
_BAD_ENDS = frozenset({"Failed", "NodeNotReady", "DrainDeadline"})
# Conditions whose coming is an Event, and what the operator does meanwhile.
_TOLD_ONCE = {"DrainUnobserved": "DrainPod", "ReplicasContested": "Scale"}


def events(before: Manifest, after: Manifest, actions: Iterable[Action]) -> list[Event]:
    """Return the Events of one pass.

    Args:
        before: the status that was stored.
        after: the status that is right now.
        actions: what the pass did.
    """
    return [*_of_actions(actions), *_of_conditions(before, after)]


def _of_actions(actions: Iterable[Action]) -> Iterator[Event]:
    for action in actions:
        match action:
            case Create(kind="Pod"):
                yield from _of_new_pod(action)
            case Create():
                revision = action.manifest["metadata"]["labels"][labels.REVISION]
                note = f"pods are made of revision {revision} from now on"
                yield Event("Normal", "NewRevision", "Record", note)
            case Patch(purpose=Purpose.DRAIN, name=name, reason=reason):
                note = f"pod {name} serves no new requests ({reason})"
                yield Event("Normal", "PodDraining", "DrainPod", note)
            case Delete(kind="Pod", name=name, reason=reason):
                kind = "Warning" if reason in _BAD_ENDS else "Normal"
                yield Event(kind, "PodDeleted", "DeletePod", f"deleted pod {name} ({reason})")
            case Delete(kind="PodDisruptionBudget" as kind, name=name):
                yield Event("Normal", "BudgetDeleted", "DeleteBudget", f"deleted {kind} {name}")
            case Apply():
                yield from _of_apply(action)
            case Adopt(kind=kind, name=name):
                yield Event("Normal", "Adopted", "Adopt", f"adopted {kind} {name}")


def _of_new_pod(action: Create) -> Iterator[Event]:
    yield Event("Normal", "PodCreated", "CreatePod", f"created pod {action.name} ({action.reason})")
    if action.changed:
        note = f"admission changed pod {action.name}: {'; '.join(action.changed)}"
        yield Event("Warning", "ChangedByAdmission", "CreatePod", note)


def _of_apply(action: Apply) -> Iterator[Event]:
    name = f"{action.kind} {action.name}"
    if action.changed:
        note = f"admission changed {name} at {', '.join(action.changed[:5])}"
        yield Event("Warning", "ChangedByAdmission", "Apply", note)
    elif action.reason == "Drift":
        yield Event("Normal", "Corrected", "Apply", f"{name} differed at {', '.join(action.drift[:5])}")


def _of_conditions(before: Manifest, after: Manifest) -> Iterator[Event]:
    old = {condition["type"]: condition for condition in before.get("conditions", ())}
    new = {condition["type"]: condition for condition in after.get("conditions", ())}
    ready, stalled, reconciling = (new.get(kind, {}) for kind in ("Ready", "Stalled", "Reconciling"))
    for kind, action in _TOLD_ONCE.items():
        if kind in new and kind not in old:
            yield Event("Warning", new[kind]["reason"], action, new[kind]["message"])
    if stalled.get("status") == "True" and _changed(old.get("Stalled", {}), stalled):
        yield Event("Warning", stalled["reason"], "Reconcile", stalled["message"])
    elif _changed(old.get("Ready", {}), ready):
        kind = "Warning" if ready.get("reason") in _WARNINGS else "Normal"
        yield Event(kind, ready["reason"], "Reconcile", ready["message"])
    elif reconciling.get("reason") in _WARNINGS and _changed(old.get("Reconciling", {}), reconciling):
        # A scale-up leaves Ready as it is: what holds it up would be told nowhere else.
        yield Event("Warning", reconciling["reason"], "Reconcile", reconciling["message"])


def _changed(old: Manifest, new: Manifest) -> bool:
    """Whether the news is other than last time; counts within the message are not news."""
    return (old.get("status"), old.get("reason")) != (new.get("status"), new.get("reason"))
