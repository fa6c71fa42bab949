"""Admission of the fake API server: who may refuse a write, or change it before it is stored.

``fake.admission.append(hook)``: hooks see each request that would otherwise change something, in their order;
what tests put into the storage directly passes them by. A hook returns the object to store, None to leave it
as it is, or raises ``Denied``.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Review:
    """One write as admission sees it.

    Args:
        operation: CREATE, UPDATE or DELETE.
        plural: kind of object.
        subresource: "status" or "".
        obj: what would be stored; of a DELETE, what is.
    """

    operation: str
    plural: str
    subresource: str
    obj: Object

    @property
    def name(self) -> str:
        """The object's name."""
        return str(self.obj["metadata"]["name"])


class Denied(Exception):
    """The write is answered with this Status."""

    def __init__(self, message: str, code: int = 403, reason: str = "Forbidden") -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


Hook = Callable[[Review], Object | None]
Text = Callable[[int], str]


def audited(number: int) -> str:
    """What a policy engine says that gives each denial an id: never the same text twice."""
    return (
        f'admission webhook "policy.example" denied the request: no (audit id {number:08x}-{number % 97:04x})'
    )


def unreachable(number: int) -> str:
    """What the API server says of a webhook that is down: the local port changes with each connection."""
    port = 32768 + number * 7 % 28000
    return (
        f'failed calling webhook "policy.example": read tcp 10.0.0.1:{port}->10.96.0.7:443: connection reset'
    )


def refuse(
    plural: str,
    text: Text = audited,
    code: int = 403,
    operations: tuple[str, ...] = ("CREATE", "UPDATE", "DELETE"),
    subresource: str = "",
    only: Callable[[Review], bool] = lambda review: True,
) -> Hook:
    """Refuse writes of a kind, each in words of its own: ``text`` is told how many came before."""
    numbers = itertools.count()
    reason = {403: "Forbidden", 422: "Invalid"}.get(code, "InternalError" if code >= 500 else "")

    def hook(review: Review) -> Object | None:
        fits = (review.plural, review.subresource) == (plural, subresource)
        if fits and review.operation in operations and only(review):
            raise Denied(text(next(numbers)), code, reason)
        return None

    return hook


def quota(plural: str, most: int, count: Callable[[], int]) -> Hook:
    """Refuse to create more than so many."""

    def hook(review: Review) -> Object | None:
        used = count()
        if (review.operation, review.plural) == ("CREATE", plural) and used >= most:
            asked = f"requested: {plural}=1, used: {plural}={used}, limited: {plural}={most}"
            raise Denied(f'{plural} "{review.name}" is forbidden: exceeded quota: few, {asked}')
        return None

    return hook


def relabel(plural: str, **changed: str | None) -> Hook:
    """Set labels ``stoker.dev/KEY`` of a kind to these values, or drop them, whatever was sent."""
    return edit(plural, lambda obj: _set(obj, ("metadata", "labels"), changed, "stoker.dev/"))


def annotate(plural: str, **changed: str | None) -> Hook:
    """The same of annotations."""
    return edit(plural, lambda obj: _set(obj, ("metadata", "annotations"), changed, "stoker.dev/"))


def prune(plural: str, *path: str) -> Hook:
    """Drop one field of a kind, as a schema that does not know it does."""

    def drop(obj: Object) -> None:
        node: Any = obj
        for step in path[:-1]:
            node = node.get(step) or {}
        node.pop(path[-1], None)

    return edit(plural, drop)


def edit(plural: str, change: Callable[[Object], None], subresource: str = "") -> Hook:
    """Change objects of a kind on their way in: ``change`` gets a copy of its own."""

    def hook(review: Review) -> Object | None:
        if (review.plural, review.subresource) != (plural, subresource) or review.operation == "DELETE":
            return None
        obj = copy.deepcopy(review.obj)
        change(obj)
        return obj

    return hook


def _set(obj: Object, path: tuple[str, ...], changed: dict[str, str | None], prefix: str) -> None:
    node = obj
    for step in path:
        node = node.setdefault(step, {})
    for key, value in changed.items():
        node.pop(prefix + key, None)
        if value is not None:
            node[prefix + key] = value
