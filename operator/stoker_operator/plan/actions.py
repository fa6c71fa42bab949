"""The writes that a plan may ask for: each is one API call, with the reason that logs and Events show."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stoker_operator.observed import Manifest


class _OfManifest:
    """Whatever writes a whole object says in its manifest which one."""

    __slots__ = ()
    manifest: Manifest

    @property
    def kind(self) -> str:
        """As in manifests."""
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        """Of the object."""
        return str(self.manifest["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Create(_OfManifest):
    """Create a pod or the record of a revision under a name that nobody has. If one has it, change nothing.

    `changed`, once it is done: what admission made otherwise, for a person.
    """

    manifest: Manifest
    reason: str
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an object of this kind, with its uid as precondition; a pod's own grace period applies."""

    kind: str
    name: str
    uid: str
    reason: str


class Purpose(Enum):
    """What a patch is for; the value is what a log says."""

    ADMIT = "let go to a node"  # the group is whole, and it is its turn
    NOTE = "note failures on"  # of groups that are taken away before somebody follows them
    DRAIN = "stop serving from"  # the pod leaves its Service but goes on answering


@dataclass(frozen=True, slots=True)
class Patch:
    """Merge `body` into one of our objects, with its uid as precondition."""

    kind: str
    name: str
    uid: str
    body: Manifest
    purpose: Purpose
    reason: str


@dataclass(frozen=True, slots=True)
class Apply(_OfManifest):
    """Server-side apply of what all pods share, where it is missing or differs at `drift`.

    `changed`, once it is done: where it differs all the same.
    """

    manifest: Manifest
    drift: tuple[str, ...]
    reason: str
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Adopt:
    """Become the controller of an object of ours that nobody controls.

    A merge patch of `references`, all of the object's, with its uid and version as preconditions. Unlike a
    `Patch` it is done only while the ModelDeployment is there to become the owner.
    """

    kind: str
    name: str
    uid: str
    version: str
    references: tuple[Manifest, ...]
    reason: str = "Orphaned"


Action = Create | Delete | Patch | Apply | Adopt
