"""Requests that wait, in the order in which they are served. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter

from stoker_runtime.core.request import Request

by_order = attrgetter("order")


class WaitingQueue:
    """Waiting requests in two lanes, short prompts and long ones, each by `Request.order`.

    Sorted lists rather than heaps: requests leave from anywhere when their clients go, and nothing of them
    may stay behind. Moving a list of tens of thousands costs microseconds.
    """

    def __init__(self) -> None:
        self._lanes: tuple[list[Request], list[Request]] = ([], [])  # short, long

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def __iter__(self) -> Iterator[Request]:
        return chain(*self._lanes)

    @property
    def priority(self) -> int | None:
        """Of the most urgent request; None when nobody waits."""
        return min((lane[0].priority for lane in self._lanes if lane), default=None)

    def first(self, priority: int, *, is_long: bool) -> Request | None:
        """Return who is next in a lane if that is one of this priority, and none more urgent is there."""
        lane = self._lanes[is_long]
        return lane[0] if lane and lane[0].priority == priority else None

    def add(self, request: Request) -> None:
        """Queue a request in the lane that `is_long` says, where its order puts it."""
        insort(self._lanes[request.is_long], request, key=by_order)

    def remove(self, request: Request) -> None:
        """Take out a request that waits."""
        lane = self._lanes[request.is_long]
        index = bisect_left(lane, request.order, key=by_order)
        assert lane[index] is request, "the request does not wait"
        del lane[index]

    def check(self) -> None:
        """Assert that both lanes are in order.

        Raises:
            AssertionError: they are not.
        """
        for lane in self._lanes:
            orders = [request.order for request in lane]
            assert orders == sorted(set(orders)), "waiting requests are out of order"
