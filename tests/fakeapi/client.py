"""Short cuts for tests that play the user or the kubelet: direct changes of the fake's objects."""

from typing import Any

from fakeapi.core import FakeApi
from fakeapi.fields import Owners, merge
from fakeapi.kinds import KINDS

Object = dict[str, Any]

_BY_TABLE = {kind.table: kind for kind in KINDS}


def put(api: FakeApi, plural: str, obj: Object, manager: str = "user") -> Object:
    """Create an object, or merge this into the one of that name; the status part goes to the status."""
    kind = _BY_TABLE[plural]
    metadata = obj["metadata"]
    key = (metadata.get("namespace") or "", metadata["name"])
    stored = api.storage.get(plural, key)
    if stored is None:
        full = {"apiVersion": kind.api_version, "kind": kind.kind, **merge({}, obj)}
        created = api.storage.insert(kind, full, Owners({}, {}, full, manager))
        if "status" not in obj:
            return created
        stored = api.storage.get(plural, key)
        assert stored is not None
    after = merge(stored.obj, obj)
    if set(obj) == {"metadata", "status"}:
        # A kubelet's news, the bulk of all changes: its fields have no other owner.
        return api.storage.update(kind, after, stored.owners)
    return api.storage.update(kind, after, Owners(stored.owners, stored.obj, after, manager))


def get(api: FakeApi, plural: str, name: str, namespace: str = "default") -> Object | None:
    """The object as stored."""
    kind = _BY_TABLE[plural]
    stored = api.storage.get(plural, (namespace if kind.namespaced else "", name))
    return None if stored is None else stored.obj


def delete(
    api: FakeApi, plural: str, name: str, namespace: str = "default", grace_s: int | None = None
) -> None:
    """Delete as kubectl does; ``grace_s=0`` removes a pod at once, as the kubelet does in the end."""
    kind = _BY_TABLE[plural]
    api.storage.delete(plural, (namespace if kind.namespaced else "", name), grace_s)


def everything(api: FakeApi, plural: str) -> list[Object]:
    """All objects of a kind."""
    return list(api.storage.all(plural))
