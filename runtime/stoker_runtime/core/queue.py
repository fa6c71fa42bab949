"""Requests that wait, in the order in which they are served. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from stoker_runtime.core.request import Request

by_order = attrgetter("order")


class WaitingQueue:
    """Waiting requests by `Request.order`: the most urgent, and among equals the oldest, first.

    A sorted list rather than a heap: requests leave from anywhere when their clients go, and nothing of them
    may stay behind. Moving a list of tens of thousands costs microseconds.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    @property
    def first(self) -> Request | None:
        """Who is next, if anybody waits."""
        return self._requests[0] if self._requests else None

    def add(self, request: Request) -> None:
        """Queue a request where its order puts it."""
        insort(self._requests, request, key=by_order)

    def remove(self, request: Request) -> None:
        """Take out a request that waits."""
        index = bisect_left(self._requests, request.order, key=by_order)
        assert self._requests[index] is request, "the request does not wait"
        del self._requests[index]
