"""An event loop whose clock jumps: a coroutine that waits an hour is done at once, always in one order."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Stuck(Exception):
    """Everybody waits and no timer is left: the coroutine could never end."""


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for a timeout, moves the loop's clock there."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise Stuck("nothing is scheduled any more")
        self.now_s += max(timeout, 0.0)
        return []  # no sockets, so there is nothing to ask the kernel for


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; no sockets, no threads."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run_virtual(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)


def virtual_now() -> datetime:
    """The wall clock that goes with the running loop's time; where none runs, time has not begun."""
    try:
        return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())
    except RuntimeError:
        return EPOCH


async def pass_time(seconds: float) -> None:
    """Let virtual time go by."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop), "only virtual time may pass in a test"
    done = loop.create_future()
    timer = loop.call_later(seconds, lambda: None if done.done() else done.set_result(None))
    try:
        await done
    finally:
        timer.cancel()


async def until(condition: Callable[[], object], deadline_s: float = 60.0, step_s: float = 0.05) -> None:
    """Wait for a condition; fails when it does not come true in virtual time."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + deadline_s
    while not condition():
        assert loop.time() < ends_at, f"not true within {deadline_s} s"
        await pass_time(step_s)
