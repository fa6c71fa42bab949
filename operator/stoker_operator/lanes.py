"""The order in which keys get their pass: two lanes, first come first served in each; pure.

What somebody waits for goes first: an event, a wake, a time that has come. What is looked at in case
nobody told us waits behind it, but not for ever.
"""

from collections import OrderedDict
from collections.abc import Hashable
from enum import IntEnum
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

# So many keys of the high lane in a row, while one of the low lane waits: then it is its turn.
MAX_IN_A_ROW = 8


class Priority(IntEnum):
    """Which lane a key goes into."""

    LOW = 0
    HIGH = 1


class Lanes(Generic[K]):
    """Keys that wait, each of them once."""

    def __init__(self) -> None:
        self._lanes: dict[Priority, OrderedDict[K, None]] = {each: OrderedDict() for each in Priority}
        self._num_in_a_row = 0

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def add(self, key: K, priority: Priority) -> bool:
        """Let a key wait; one that waits in the low lane may change to the high one, at its end.

        Returns:
            whether it did not wait before.
        """
        high, low = self._lanes[Priority.HIGH], self._lanes[Priority.LOW]
        is_waiting = key in high or key in low
        if not is_waiting:
            self._lanes[priority][key] = None
        elif priority is Priority.HIGH and key in low:
            del low[key]
            high[key] = None
        return not is_waiting

    def take(self) -> K:
        """Remove and return the next key.

        Raises:
            KeyError: none waits.
        """
        high, low = self._lanes[Priority.HIGH], self._lanes[Priority.LOW]
        if high and not (low and self._num_in_a_row >= MAX_IN_A_ROW):
            self._num_in_a_row = self._num_in_a_row + 1 if low else 0
            return high.popitem(last=False)[0]
        self._num_in_a_row = 0
        return low.popitem(last=False)[0]
