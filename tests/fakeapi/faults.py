"""What can go wrong with one API call, and when."""

import enum
from collections.abc import Callable
from dataclasses import dataclass


class Fault(enum.Enum):
    """One way a call fails. BEFORE: nothing was carried out. AFTER: it was, but the caller never hears."""

    FORBIDDEN = "403"
    CONFLICT = "409"
    GONE = "410"
    THROTTLED = "429"
    SERVER_ERROR = "500"
    TIMEOUT_BEFORE = "timeout before"
    TIMEOUT_AFTER = "timeout after"
    RESET_BEFORE = "reset before"
    RESET_AFTER = "reset after"
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"

    def __str__(self) -> str:
        return self.value


REFUSALS: dict[Fault, tuple[int, str]] = {
    Fault.FORBIDDEN: (403, "Forbidden"),
    Fault.CONFLICT: (409, "Conflict"),
    Fault.GONE: (410, "Expired"),
    Fault.THROTTLED: (429, "TooManyRequests"),
    Fault.SERVER_ERROR: (500, "InternalError"),
}
AFTER = frozenset({Fault.TIMEOUT_AFTER, Fault.RESET_AFTER, Fault.CRASH_AFTER})
CRASHES = frozenset({Fault.CRASH_BEFORE, Fault.CRASH_AFTER})


@dataclass(frozen=True)
class Call:
    """One request as the server saw it."""

    method: str
    path: str
    body: bytes | None = None
    is_watch: bool = False

    @property
    def is_write(self) -> bool:
        return self.method != "GET"


Injector = Callable[[Call], Fault | None]


def no_fault(call: Call) -> Fault | None:
    """Everything works."""
    del call
    return None


class FaultAt:
    """The n-th call of a sort fails, once.

    Args:
        index: which one, from 0.
        fault: how.
        writes: count writes only, or (False) reads and watches only.
    """

    def __init__(self, index: int, fault: Fault, writes: bool = True) -> None:
        self._left = index
        self._fault = fault
        self._writes = writes
        self.fired = False

    def __call__(self, call: Call) -> Fault | None:
        if self.fired or call.is_write != self._writes:
            return None
        if self._left > 0:
            self._left -= 1
            return None
        self.fired = True
        return self._fault
