"""Which fields of the messages a template reads, seen while it reads them.

Its source tells less: a field's name may stand there for another object's, such as that of a tool.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

from stoker_runtime.server.chat_history import REASONING_FIELDS, Message

_MAX_NAMES = 64
_MAX_NAME_CHARS = 64
# A field that is passed on under another name is read when that is.
_ALIASES = {name: REASONING_FIELDS for name in REASONING_FIELDS} | {
    "function_call": ("function_call", "tool_calls")
}

_RENAMED = {"developer": "system", "function": "tool"}


class _Watched(dict[str, Any]):
    """A dict that remembers which keys were asked for."""

    __module__ = "builtins"  # so that a template's error speaks of a dict, which is what the client sent

    def __init__(self, items: Mapping[str, Any]) -> None:
        super().__init__(items)
        self._asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._asked.add(str(key))
        return super().__contains__(key)

    def _all(self) -> _Watched:
        self._asked.update(super().keys())
        return self

    def __iter__(self) -> Iterator[str]:
        return super(_Watched, self._all()).__iter__()

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        return super(_Watched, self._all()).keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return super(_Watched, self._all()).values()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        return super(_Watched, self._all()).items()

    def copy(self) -> dict[str, Any]:
        return dict(super(_Watched, self._all()).items())

    def __repr__(self) -> str:
        return super(_Watched, self._all()).__repr__()


_Watched.__name__ = "dict"


def watched(messages: Sequence[Message]) -> list[Message]:
    """Return messages that remember what is read of them and of their contents' parts."""
    return [_Watched({**message, "content": _watched_parts(message["content"])}) for message in messages]


def _watched_parts(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [_Watched(part) if isinstance(part, Mapping) else part for part in content]


def unread(messages: Sequence[Mapping[str, Any]], seen: Sequence[Message]) -> list[str]:
    """Return the paths of fields that the client filled in and the template did not read, each once.

    Args:
        messages: as the client sent them.
        seen: what `watched` returned for the form that the template took.
    """
    by_role, of_parts = _read(seen)
    paths: dict[str, None] = {}
    for message in messages:
        role = str(message["role"])
        read = by_role.get(role, by_role.get(_RENAMED.get(role, "")))
        # A role that is not there any more has its content in another's.
        known = {"role"} | (read or {"content"})
        content = message.get("content")
        names = [f"messages[].{_short(name)}" for name in _unread_names(message, known)]
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping):
                found = _unread_names(part, {"type", "text"} | of_parts)
                names += [f"messages[].content[].{_short(name)}" for name in found]
        paths |= dict.fromkeys(names)
        if len(paths) >= _MAX_NAMES:
            break
    return list(paths)[:_MAX_NAMES]


def _read(seen: Sequence[Message]) -> tuple[dict[str, set[str]], set[str]]:
    """Return the fields that were read of messages, by role, and those of parts."""
    by_role: dict[str, set[str]] = {}
    of_parts: set[str] = set()
    for message in seen:
        assert isinstance(message, _Watched)
        content = dict.__getitem__(message, "content")
        by_role.setdefault(dict.__getitem__(message, "role"), set()).update(message._asked)
        for part in content if isinstance(content, list) else ():
            of_parts |= part._asked if isinstance(part, _Watched) else set()
    return by_role, of_parts


def _unread_names(item: Mapping[str, Any], read: set[str]) -> list[str]:
    """Return what holds something and was not read; false and 0 are something, an empty list is not."""
    return [
        name
        for name, value in item.items()
        if (value or value is False or value == 0) and read.isdisjoint(_ALIASES.get(name, (name,)))
    ]


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}..."
