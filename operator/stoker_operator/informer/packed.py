"""An object as a cache keeps it: its JSON, and beside that only what the cache itself asks for.

A pod of 5 KiB is 32 KiB as dictionaries and strings; packed it is its own size. Reading one costs some ten
microseconds, and what one pass reads twice is unpacked once.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

Object = dict[str, Any]
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Packed:
    """One object.

    Args:
        key: (namespace, name).
        uid: of the object.
        version: its resource version.
        index_keys: where an index has it.
        text: the object as JSON.
    """

    key: Key
    uid: str
    version: int
    index_keys: tuple[Key, ...]
    text: bytes


def pack(obj: Object, index_keys: Iterable[Key]) -> Packed:
    """Return an object packed."""
    metadata = obj["metadata"]
    return Packed(
        key=_interned(key_of(obj)),
        uid=metadata.get("uid") or "",
        version=version_of(obj),
        index_keys=tuple(map(_interned, index_keys)),
        text=_text(obj),
    )


def _text(obj: Object) -> bytes:
    try:
        # orjson writes into a larger buffer and cuts it: as its own size it takes half the memory.
        return bytes(memoryview(orjson.dumps(obj)))
    except TypeError:
        # It goes 254 levels deep, and reads 1024; what a field of any shape holds must not end a watch.
        return json.dumps(obj, separators=(",", ":")).encode()


class Unpacker:
    """Unpacks, and remembers what it unpacked lately.

    Args:
        most: how many objects it remembers.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lately: OrderedDict[int, tuple[Packed, Object]] = OrderedDict()

    def __call__(self, packed: Packed) -> Object:
        """Return the object; treat it as frozen, others have it too."""
        found = self._lately.get(id(packed))
        if found is not None:
            self._lately.move_to_end(id(packed))
            return found[1]
        obj = unpack(packed)
        # With the packed one itself, so that no other can have its identity meanwhile.
        self._lately[id(packed)] = (packed, obj)
        if len(self._lately) > self._most:
            self._lately.popitem(last=False)
        return obj


def unpack(packed: Packed) -> Object:
    """Return the object, which nobody else has."""
    obj: Object = orjson.loads(packed.text)
    return obj


def key_of(obj: Object) -> Key:
    """(namespace, name); the namespace of a cluster-wide object is ""."""
    metadata = obj["metadata"]
    return (metadata.get("namespace") or "", metadata["name"])


def version_of(obj: Object) -> int:
    """The resource version as a number; Kubernetes documents them as comparable integers of one kind."""
    return int(obj["metadata"].get("resourceVersion") or 0)


def _interned(key: Key) -> Key:
    # A name stands in the keys of many objects and in indexes.
    return sys.intern(key[0]), sys.intern(key[1])
