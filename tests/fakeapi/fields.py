"""Server-side apply on plain dicts: which manager set which field, merged and removed accordingly.

A field is a path of keys; an item of a list with a known merge key is the step ``("name", "engine")``, any
other list is one value. Enough of the real rules for what the operator sends: ownership per manager, removal
of what a manager no longer applies, conflicts without force.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Path = tuple[Any, ...]

MERGE_KEYS: dict[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "port",
    "conditions": "type",
    "ownerReferences": "uid",
    "imagePullSecrets": "name",
}

# What identifies an object belongs to nobody.
_IDENTITY: frozenset[Path] = frozenset(
    {("apiVersion",), ("kind",)}
    | {
        ("metadata", name)
        for name in ("name", "namespace", "uid", "resourceVersion", "generation", "managedFields")
    }
)

_ABSENT = object()


class FieldConflict(Exception):
    """Another manager set one of the fields to something else."""


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Every leaf of a manifest by its path; an empty dict or list is a leaf."""
    found: dict[Path, Any] = {}
    _collect(value, path, found)
    return found


def _collect(value: Any, path: Path, found: dict[Path, Any]) -> None:
    if path in _IDENTITY:
        return
    if isinstance(value, dict) and (value or not path):
        for key, item in value.items():
            _collect(item, (*path, key), found)
        return
    merge_key = _merge_key(path, value)
    if merge_key is None:
        found[path] = value
        return
    for item in value:
        _collect(item, (*path, (merge_key, item[merge_key])), found)


def apply(
    live: dict[str, Any], config: dict[str, Any], owners: Mapping[Path, set[str]], manager: str, force: bool
) -> tuple[dict[str, Any], dict[Path, set[str]]]:
    """The object and the owners after ``manager`` applied ``config``.

    Raises:
        FieldConflict: without force, when another manager holds a different value.
    """
    wanted = leaves(config)
    changed = {path for path, value in wanted.items() if _at(live, path) != value}
    for path in changed:
        others = owners.get(path, set()) - {manager}
        if others and not force:
            raise FieldConflict(f"conflict with {sorted(others)} at {path}")
    result = _copy(live)
    kept: dict[Path, set[str]] = {}
    is_shrunk = False
    for path, managers in owners.items():
        still = managers - {manager}
        if still:
            kept[path] = still
        elif path not in wanted:
            _remove(result, path)
            is_shrunk = True  # and something wanted may have gone with it
    for path, value in wanted.items():
        if is_shrunk or path in changed:
            _set(result, path, _copy(value))
        kept[path] = {manager} if path in changed else kept.get(path, set()) | {manager}
    return result, kept


def merge(live: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return _copy(patch)
    result = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


@dataclass(frozen=True, eq=False)
class Owners(Mapping[Path, set[str]]):
    """The owners after a plain write: who changed a field owns it alone, a removed field has no owner.

    Only an apply asks for them, and most objects never see one: they are worked out when they are asked for.

    Args:
        earlier: the owners before it.
        before: the object before it.
        after: the object after it.
        manager: who wrote.
    """

    earlier: Mapping[Path, set[str]]
    before: Any
    after: Any
    manager: str

    def __getitem__(self, path: Path) -> set[str]:
        return self._known[path]

    def __iter__(self) -> Iterator[Path]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    @cached_property
    def _known(self) -> dict[Path, set[str]]:
        writes, earlier = [self], self.earlier
        while isinstance(earlier, Owners):
            writes.append(earlier)
            earlier = earlier.earlier
        result = dict(earlier)
        for write in reversed(writes):
            write._change(result)
        return result

    def _change(self, owners: dict[Path, set[str]]) -> None:
        for path, old, new in _differences(self.before, self.after, ()):
            have = {} if old is _ABSENT else leaves(old, path)
            now = {} if new is _ABSENT else leaves(new, path)
            for gone in have.keys() - now.keys():
                owners.pop(gone, None)
            for leaf, value in now.items():
                if leaf not in have or have[leaf] != value:
                    owners[leaf] = {self.manager}


def _differences(before: Any, after: Any, path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """The smallest parts in which two manifests differ, each with its path; one may be absent."""
    for key in {**before, **after}:
        old, new = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if old is new or old == new:
            continue
        if old and new and isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, (*path, key))
        else:
            yield (*path, key), old, new


def _at(root: Any, path: Path) -> Any:
    """The value at a path."""
    node = root
    for step in path:
        if isinstance(step, tuple):
            node = _step(node, step, create=False) if isinstance(node, list) else None
        else:
            node = node.get(step, _ABSENT) if isinstance(node, dict) else None
        if node is None or node is _ABSENT:
            return node
    return node


def _merge_key(path: Path, value: Any) -> str | None:
    if not isinstance(value, list) or not value or not path or not isinstance(path[-1], str):
        return None
    key = MERGE_KEYS.get(path[-1])
    if key is None or not all(isinstance(item, dict) and key in item for item in value):
        return None
    return key


def _step(node: Any, step: Any, create: bool) -> Any:
    """The child of a node; a tuple step picks the list item with that key."""
    if isinstance(step, tuple):
        key, wanted = step
        for item in node:
            if item.get(key) == wanted:
                return item
        if not create:
            return None
        item = {key: wanted}
        node.append(item)
        return item
    return node.get(step) if isinstance(node, dict) else None


def _set(root: dict[str, Any], path: Path, value: Any) -> None:
    node: Any = root
    for index, step in enumerate(path[:-1]):
        child = _step(node, step, create=True)
        fresh: Any = [] if isinstance(path[index + 1], tuple) else {}
        if not isinstance(child, dict | list) or isinstance(child, list) != isinstance(fresh, list):
            child = fresh
            node[step] = child
        node = child
    node[path[-1]] = value


def _remove(root: dict[str, Any], path: Path) -> None:
    trail: list[tuple[Any, Any]] = []
    node: Any = root
    for step in path[:-1]:
        trail.append((node, step))
        node = _step(node, step, create=False)
        if node is None:
            return
    if isinstance(path[-2:][0], tuple) and path[-1] == path[-2][0] and len(node) > 1:
        return  # the key of a list item stays for as long as the item has anything else
    if isinstance(node, dict):
        node.pop(path[-1], None)
    for parent, step in reversed(trail):
        child = _step(parent, step, create=False)
        # A list item that holds nothing but its own key is gone as well.
        if isinstance(step, tuple):
            if child is not None and set(child) <= {step[0]}:
                parent.remove(child)
        elif child in ({}, []):
            parent.pop(step, None)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def without(obj: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """The object without the field at a path."""
    name, *rest = path
    if name not in obj:
        return obj
    if rest:
        return {**obj, name: without(obj[name], rest)}
    return {key: value for key, value in obj.items() if key != name}
