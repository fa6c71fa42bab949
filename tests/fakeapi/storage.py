"""Objects, resource versions and the watch log of the fake API server; garbage collection by owner.

A stored object is never changed in place: every change stores a new one, so copies may share what is inside.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fakeapi.fields import Path
from fakeapi.kinds import KINDS, Kind, default
from fakeapi.managed import managed_fields

Object = dict[str, Any]
Key = tuple[str, str]


@dataclass
class Stored:
    """One object and who owns its fields."""

    obj: Object
    owners: Mapping[Path, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One line of history; ``before`` is the copy that it replaced."""

    version: int
    plural: str
    type: str
    obj: Object
    before: Object | None


class Storage:
    """The fake's etcd.

    Args:
        clock: the time for timestamps.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.version = 1
        self.oldest_version = 1
        self.history: list[Change] = []
        self._clock = clock
        self._uids = itertools.count(1)
        self._tables: dict[str, dict[Key, Stored]] = {kind.table: {} for kind in KINDS}
        self._kinds = {kind.table: kind for kind in KINDS}
        self._listeners: list[Callable[[Change], None]] = []
        self._collected_version = 0  # what garbage there was then is gone

    def standing(self) -> list[Change]:
        """What there is, told as a watch from the beginning tells it."""
        return [
            Change(self.version, plural, "ADDED", obj, None)
            for plural in self._tables
            for obj in self.all(plural)
        ]

    def on_change(self, listener: Callable[[Change], None]) -> None:
        """Call ``listener`` after every change."""
        self._listeners.append(listener)

    def now(self) -> str:
        """The time as Kubernetes writes it."""
        return self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def copy(self, clock: Callable[[], datetime]) -> "Storage":
        """The same contents, changed independently from now on; history and listeners stay behind."""
        result = Storage(clock)
        result.version = result.oldest_version = self.version
        result._uids = itertools.count(10_000)
        result._tables = {
            plural: {key: Stored(stored.obj, stored.owners) for key, stored in table.items()}
            for plural, table in self._tables.items()
        }
        return result

    def restore(self, plural: str, obj: Object) -> None:
        """Take in an object as it is, uid, status and all; no watch tells of it."""
        self.version += 1
        self.oldest_version = self.version
        obj = _fresh(obj)
        obj["metadata"]["resourceVersion"] = str(self.version)
        self._tables[plural][_key(obj)] = Stored(obj)

    def get(self, plural: str, key: Key) -> Stored | None:
        return self._tables[plural].get(key)

    def all(self, plural: str) -> Iterator[Object]:
        """Objects of a kind by namespace and name."""
        for _, stored in sorted(self._tables[plural].items()):
            yield stored.obj

    def insert(self, kind: Kind, obj: Object, owners: Mapping[Path, set[str]]) -> Object:
        obj = _fresh(obj)
        if kind.has_status:
            obj.pop("status", None)
        number = next(self._uids)
        default(kind, obj, number)
        metadata = obj["metadata"]
        metadata["uid"] = f"uid-{number:04d}"
        metadata["creationTimestamp"] = self.now()
        metadata["generation"] = 1
        _note_managers(kind, obj, owners)
        self._tables[kind.table][_key(obj)] = Stored(obj, owners)
        return self._log(kind.table, "ADDED", obj, None)

    def update(self, kind: Kind, obj: Object, owners: Mapping[Path, set[str]]) -> Object:
        """Store a changed copy; a copy equal to the stored one changes nothing."""
        stored = self._tables[kind.table][_key(obj)]
        before = stored.obj
        stored.owners = owners
        obj = _fresh(obj)
        for name in ("resourceVersion", "generation"):
            obj["metadata"][name] = before["metadata"][name]
        _note_managers(kind, obj, owners)
        if obj == before:
            return before
        if obj.get("spec") != before.get("spec"):
            obj["metadata"]["generation"] = before["metadata"]["generation"] + 1
        stored.obj = obj
        terminates = "deletionTimestamp" in obj["metadata"] and kind.table != "pods"
        if terminates and not obj["metadata"].get("finalizers"):
            return self.remove(kind.table, _key(obj))
        return self._log(kind.table, "MODIFIED", obj, before)

    def remove(self, plural: str, key: Key) -> Object:
        stored = self._tables[plural].pop(key)
        # A deleted object carries the version of its deletion, as on the real watch.
        gone = _fresh(stored.obj)
        return self._log(plural, "DELETED", gone, stored.obj)

    def delete(self, plural: str, key: Key, grace_s: int | None = None) -> tuple[Object, bool]:
        """Start or finish a deletion.

        Returns:
            the object, and whether it is gone (else it terminates).
        """
        stored = self._tables[plural][key]
        before = stored.obj
        waits = bool(before["metadata"].get("finalizers"))
        if plural == "pods":
            phase = (before.get("status") or {}).get("phase")
            runs = bool(before["spec"].get("nodeName")) and phase not in ("Succeeded", "Failed")
            waits = waits or (runs and grace_s != 0)
        if not waits:
            return self.remove(plural, key), True
        if "deletionTimestamp" in before["metadata"]:
            return before, False
        obj = _fresh(before)
        obj["metadata"]["deletionTimestamp"] = self.now()
        if plural == "pods":
            obj["metadata"]["deletionGracePeriodSeconds"] = obj["spec"]["terminationGracePeriodSeconds"]
        stored.obj = obj
        return self._log(plural, "MODIFIED", obj, before), False

    def compact(self) -> None:
        """Forget the history: a watch from any older version is answered with 410."""
        self.oldest_version = self.version
        self.history.clear()

    def collect_garbage(self) -> int:
        """Delete every object whose owners are all gone; returns how many."""
        if self._collected_version == self.version:
            return 0
        self._collected_version = self.version
        uids = {stored.obj["metadata"]["uid"] for table in self._tables.values() for stored in table.values()}
        num_deleted = 0
        for plural, table in self._tables.items():
            for key, stored in list(table.items()):
                metadata = stored.obj["metadata"]
                owners = metadata.get("ownerReferences") or []
                if (
                    owners
                    and "deletionTimestamp" not in metadata
                    and not uids & {ref["uid"] for ref in owners}
                ):
                    self.delete(plural, key)
                    num_deleted += 1
        return num_deleted

    def _log(self, plural: str, type_: str, obj: Object, before: Object | None) -> Object:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        change = Change(self.version, plural, type_, obj, before)
        self.history.append(change)
        for listener in list(self._listeners):
            listener(change)
        return obj


def _note_managers(kind: Kind, obj: Object, owners: Mapping[Path, set[str]]) -> None:
    """Write managedFields where the operator reads them; elsewhere they are only bytes, and many."""
    if kind.table == "modeldeployments":
        obj["metadata"]["managedFields"] = managed_fields(owners)


def _fresh(obj: Object) -> Object:
    """A copy whose metadata may be changed; stored objects never are, so the rest is shared."""
    return {**obj, "metadata": dict(obj["metadata"])}


def _key(obj: Object) -> Key:
    return (obj["metadata"].get("namespace") or "", obj["metadata"]["name"])
