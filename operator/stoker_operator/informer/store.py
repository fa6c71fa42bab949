"""A cache of one kind of object: what the watch said, overlaid with what our own writes returned.

The overlay makes the operator read its own writes: the copy an apply returned is in the cache before the
watch delivers it, and an older copy that arrives late does not replace it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from stoker_operator.informer.packed import Key, Object, Packed, Unpacker, key_of, pack, unpack, version_of

TrimFn = Callable[[Object], Object]
IndexFn = Callable[[Object], Iterable[Key]]
ChangeFn = Callable[[Object], None]

# More objects than can vanish while one of our calls is under way.
MAX_GONE = 4096
# Unpacked objects that are remembered: what the passes of this moment have read, and will again.
MAX_UNPACKED = 32


def trim_managed_fields(obj: Object) -> Object:
    """The object without the bookkeeping of server-side apply, often half of its bytes."""
    metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    return {**obj, "metadata": metadata}


class Store:
    """Objects of one kind by (namespace, name), with one index.

    Args:
        trim: drops what nobody reads; runs on every object that comes in.
        index: the index keys of an object.
    """

    def __init__(self, trim: TrimFn = trim_managed_fields, index: IndexFn | None = None) -> None:
        self._trim = trim
        self._index = index
        self._objects: dict[Key, Packed] = {}
        self._unpacked = Unpacker(MAX_UNPACKED)
        self._by_index: dict[Key, set[Key]] = {}
        # Uids (and namespaces) that our own calls deleted, while older events may still be on their way.
        self._deleted_uids: dict[str, str] = {}
        # Versions at which the watch reported uids gone, while older answers of our own calls may still be on
        # their way. Gone from the watch is not always deleted: an object may lose its label and get it back.
        self._gone_at: OrderedDict[str, int] = OrderedDict()
        self._listeners: list[ChangeFn] = []

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Object]:
        return map(unpack, list(self._objects.values()))

    def all_keys(self) -> list[Key]:
        """Keys of all objects."""
        return list(self._objects)

    def get(self, namespace: str, name: str) -> Object | None:
        """The object as last seen; treat it as frozen."""
        held = self._objects.get((namespace, name))
        return None if held is None else self._unpacked(held)

    def indexed(self, key: Key) -> list[Object]:
        """Objects under an index key, by name."""
        return [self._unpacked(self._objects[found]) for found in sorted(self._by_index.get(key, ()))]

    def is_indexed(self, key: Key) -> bool:
        """Whether there is any object under an index key."""
        return key in self._by_index

    def subscribe(self, listener: ChangeFn) -> None:
        """Call ``listener`` with every object that appears, changes or goes (its last copy)."""
        self._listeners.append(listener)

    def pack(self, obj: Object) -> Packed:
        """Return an object as this store keeps it."""
        trimmed = self._trim(obj)
        return pack(trimmed, self._index(trimmed) if self._index else ())

    def put(self, obj: Object | Packed) -> bool:
        """Take in a copy, unless we hold a newer one or know that the object was deleted after it.

        Returns:
            whether the cache changed; listeners were told then.
        """
        new = obj if isinstance(obj, Packed) else self.pack(obj)
        held = self._objects.get(new.key)
        if new.uid in self._deleted_uids or new.version <= self._gone_at.get(new.uid, -1):
            return False
        self._gone_at.pop(new.uid, None)
        if held is not None and new.version <= held.version:
            return False
        self._remember(new)
        if held is not None and (held.uid, held.index_keys) != (new.uid, new.index_keys):
            self._tell(held)
        self._tell(new)
        return True

    def remove(self, obj: Object) -> bool:
        """The watch said that this object is gone, from the cluster or from what the watch selects."""
        uid = obj["metadata"].get("uid") or ""
        self._deleted_uids.pop(uid, None)
        self._gone_at[uid] = version_of(obj)
        if len(self._gone_at) > MAX_GONE:
            self._gone_at.popitem(last=False)
        return self._drop_same(obj)

    def forget_deleted(self, obj: Object) -> bool:
        """Our own call deleted this object; copies of it that still arrive are ignored."""
        uid = obj["metadata"].get("uid")
        if uid:
            self._deleted_uids[uid] = key_of(obj)[0]
        return self._drop_same(obj)

    def replace(self, objects: list[Packed], resource_version: str, namespace: str | None) -> None:
        """Take in a fresh list: what is absent from it vanished while nobody watched.

        Args:
            objects: everything the list returned.
            resource_version: of the list; what our own writes added after it stays.
            namespace: the list's namespace; None when it covered all of them.
        """
        listed = {obj.key for obj in objects}
        for key, held in list(self._objects.items()):
            in_scope = namespace is None or key[0] == namespace
            if in_scope and key not in listed and held.version <= int(resource_version or 0):
                self._drop(held)
        uids = {obj.uid for obj in objects}
        for uid, at in list(self._deleted_uids.items()):
            # No event of an object that the list no longer has can still arrive.
            if uid not in uids and namespace in (None, at):
                del self._deleted_uids[uid]
        for obj in objects:
            self.put(obj)

    def is_ahead_of(self, objects: list[Packed], version: int) -> bool:
        """Whether a list of this version shows an older copy of something than we saw at or before it.

        Then the server's history is not the one that we followed. What is newer than the list is our write.
        """
        for obj in objects:
            held = self._objects.get(obj.key)
            if held is not None and held.uid == obj.uid and obj.version < held.version <= version:
                return True
        return False

    def clear(self, namespace: str | None) -> None:
        """Drop everything in scope, overlay and all: the server's history went back (a restored backup)."""
        for key, held in list(self._objects.items()):
            if namespace is None or key[0] == namespace:
                self._drop(held)
        # What was deleted may exist again.
        self._gone_at.clear()
        for uid, at in list(self._deleted_uids.items()):
            if namespace in (None, at):
                del self._deleted_uids[uid]

    def _drop_same(self, obj: Object) -> bool:
        """Drop what we hold of this very object, whatever its version."""
        held = self._objects.get(key_of(obj))
        is_same = held is not None and held.uid == (obj["metadata"].get("uid") or "")
        return held is not None and is_same and self._drop(held)

    def _drop(self, held: Packed) -> bool:
        if self._objects.get(held.key) is not held:
            return False
        self._forget(held)
        self._tell(held)
        return True

    def _remember(self, new: Packed) -> None:
        held = self._objects.get(new.key)
        if held is not None:
            self._forget(held)
        self._objects[new.key] = new
        for index_key in new.index_keys:
            self._by_index.setdefault(index_key, set()).add(new.key)

    def _forget(self, held: Packed) -> None:
        del self._objects[held.key]
        for index_key in held.index_keys:
            members = self._by_index.get(index_key, set())
            members.discard(held.key)
            if not members:
                self._by_index.pop(index_key, None)

    def _tell(self, packed: Packed) -> None:
        if self._listeners:
            obj = unpack(packed)
            for listener in self._listeners:
                listener(obj)
