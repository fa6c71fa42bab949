"""Where an observed object lacks what we want of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def drift(wanted: Any, observed: Any, path: str = "") -> list[str]:
    """Return the paths of the leaves of `wanted` that `observed` lacks or has otherwise.

    What only `observed` has is left alone: defaults of the API server and other people's fields. Lists of
    named objects are matched by name, owner references by uid, other lists by position.
    """
    return [] if wanted == observed else list(_drift(wanted, observed, path))


def _drift(wanted: Any, observed: Any, path: str) -> Iterator[str]:
    """Go into what differs alone: nearly all of what passes compare is equal."""
    if isinstance(wanted, Mapping):
        if not isinstance(observed, Mapping):
            yield path
            return
        for key, value in wanted.items():
            found = observed.get(key)
            if value != found:
                yield from _drift(value, found, f"{path}.{key}" if path else key)
    elif isinstance(wanted, list):
        if not isinstance(observed, list):
            yield path
            return
        for index, value in enumerate(wanted):
            label, match = _match(value, index, observed)
            if value != match:
                yield from _drift(value, match, f"{path}[{label}]")
    else:
        yield path


def _match(value: Any, index: int, observed: list[Any]) -> tuple[str, Any]:
    for identity in ("uid", "name"):
        if isinstance(value, Mapping) and identity in value:
            label = str(value[identity])
            return label, next((item for item in observed if item.get(identity) == value[identity]), None)
    return str(index), observed[index] if index < len(observed) else None
