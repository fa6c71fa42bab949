"""Everything a plan may ask for: frozen, ordered, each with the reason that logs and Events show."""

from __future__ import annotations

from dataclasses import dataclass, field

from stoker_operator.observed import Manifest
from stoker_operator.plan.groups import Group


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Create a pod under a name that no pod has. If one has it after all, change nothing.

    `changed`, once it is done: what admission made otherwise, for a person.
    """

    name: str
    manifest: Manifest
    reason: str
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StopServing:
    """Begin a drain: the pod leaves its Service but goes on answering.

    A merge patch of the label ``stoker.dev/serving`` to "false" and the annotation
    ``stoker.dev/draining-since`` to `since`, with the uid as precondition.
    """

    name: str
    uid: str
    since: str  # RFC 3339, UTC
    reason: str


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete one pod, with its uid as precondition; its own grace period applies."""

    name: str
    uid: str
    reason: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of a Service or PodDisruptionBudget, which is missing or differs at `drift`.

    `changed`, once it is done: where it differs all the same.
    """

    manifest: Manifest
    drift: tuple[str, ...]
    reason: str
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a child that is no pod, with its uid as precondition.

    `kind` as in manifests.
    """

    kind: str
    name: str
    uid: str
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """Create the record of a revision, under a name that only this revision has."""

    manifest: Manifest
    reason: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """Become the controller of an object of ours that nobody controls.

    A merge patch of `references`, all of the object's, with its uid and version as preconditions.
    """

    kind: str
    name: str
    uid: str
    version: str
    references: tuple[Manifest, ...]
    reason: str = "Orphaned"


Action = CreatePod | StopServing | DeletePod | Apply | Delete | Record | Adopt


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, in this order, and when to look again although nothing happened.

    Args:
        actions: empty at the fixed point.
        requeue_after_s: seconds until time alone may change the plan; None when only events can.
        draining: uids of the pods whose requests in flight the next plans need to know.
        groups: what it told the observed pods apart into, for whoever looks at the same ones.
    """

    actions: tuple[Action, ...] = ()
    requeue_after_s: float | None = None
    draining: frozenset[str] = frozenset()
    groups: tuple[Group, ...] = field(default=(), compare=False)


def records(todo: Plan) -> tuple[Record, ...]:
    """Return the revisions that a plan puts on record."""
    return tuple(action for action in todo.actions if isinstance(action, Record))
