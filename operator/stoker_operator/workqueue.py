"""The queue between watch events and reconcile passes.

Holds keys, never objects: ten events of one ModelDeployment are one pass. A key never runs twice at once, a
failed pass comes back with exponential back-off, and a pass may ask to come back later. What happened goes
before what is only looked at again. Knows nothing of Kubernetes; the only clock is the event loop's, so tests
may run it in virtual time.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Generic, Protocol, TypeVar

from stoker_operator.lanes import Lanes, Priority
from stoker_operator.retry import Backoff, PassFailed, RetryLater

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)


class QueueObserver(Protocol):
    """Who wants to know how passes went (the metrics)."""

    def pass_done(self, seconds: float, error: Exception | None) -> None:
        """One pass ended, after ``seconds``, with this error if it failed."""


class WorkQueue(Generic[K]):
    """Keys waiting for a pass, each at most once.

    Args:
        backoff: the delays after failures.
        rng: where jitter comes from; give it a seed in tests.
        observer: told about every pass.
    """

    def __init__(
        self,
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
        observer: QueueObserver | None = None,
    ) -> None:
        self._backoff = backoff or Backoff()
        self._rng = rng or random.Random()
        self._observer = observer
        self._lanes: Lanes[K] = Lanes()
        self._num_waiting = asyncio.Semaphore(0)  # as many as keys in the lanes, less what workers take now
        self._running: set[K] = set()
        self._again: dict[K, Priority] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._num_failures: dict[K, int] = {}

    def __len__(self) -> int:
        """Keys that wait for a worker."""
        return len(self._lanes) + len(self._again)

    @property
    def num_delayed(self) -> int:
        """Keys that wait for their time."""
        return len(self._timers)

    @property
    def is_idle(self) -> bool:
        """Whether no pass runs or could start now; delayed keys do not count."""
        return not self._lanes and not self._running

    def num_failures(self, key: K) -> int:
        """Failed passes of this key in a row."""
        return self._num_failures.get(key, 0)

    def add(self, key: K, priority: Priority = Priority.HIGH) -> None:
        """Ask for one pass of this key, when a worker is free; of several priorities the highest counts."""
        if key in self._running:
            self._again[key] = max(priority, self._again.get(key, priority))
        elif self._lanes.add(key, priority):
            self._num_waiting.release()

    def add_all(self, keys: Iterable[K], priority: Priority = Priority.HIGH) -> None:
        """Ask for one pass of each key."""
        for key in keys:
            self.add(key, priority)

    def add_after(self, key: K, delay_s: float) -> None:
        """Ask for a pass after a delay; of several requests for one key the earliest counts.

        Args:
            key: what to pass.
            delay_s: seconds from now, >= 0.
        """
        if delay_s <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + delay_s:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(delay_s, self._expire, key)

    async def work(self, handler: Callable[[K], Awaitable[float | None]]) -> None:
        """Run passes until cancelled; start as many of these as passes may run at once.

        Args:
            handler: one pass; returns when to come back (seconds) or None. An exception means back-off.
        """
        while True:
            await self._num_waiting.acquire()
            key = self._lanes.take()
            self._running.add(key)
            # The pass sees everything that is known now and says anew when it wants to come back.
            timer = self._timers.pop(key, None)
            if timer is not None:
                timer.cancel()
            try:
                await self._run(key, handler)
            finally:
                self._running.discard(key)
            if key in self._again:
                self.add(key, self._again.pop(key))
            # A pass that finds nothing to do waits for nothing: thousands of them in a row would keep the
            # renewal of the Lease, watches and probes from their turn.
            await asyncio.sleep(0)

    async def resync(self, keys: Callable[[], Iterable[K]], period_s: float) -> None:
        """Add every key once a period, for what no event told us; runs until cancelled.

        They are spread over the period: all at once would take seconds of CPU, and a burst of calls.

        Args:
            keys: all of them, when a period begins.
            period_s: how long a period is, seconds.
        """
        loop = asyncio.get_running_loop()
        while True:
            begun_at, due = loop.time(), list(keys())
            for index, key in enumerate(due, start=1):
                await _sleep_until(begun_at + period_s * index / len(due))
                self.add(key, Priority.LOW)
            await _sleep_until(begun_at + period_s)

    def close(self) -> None:
        """Forget the timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    async def _run(self, key: K, handler: Callable[[K], Awaitable[float | None]]) -> None:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        failure: Exception | None = None
        try:
            delay_s = await handler(key)
        except Exception as error:  # the catch-all of this room: logged, counted, retried, never lost
            failure = error
            delay_s = self._failed(key, error)
        else:
            self._num_failures.pop(key, None)
        if self._observer is not None:
            self._observer.pass_done(loop.time() - started_at, failure)
        if delay_s is not None:
            self.add_after(key, delay_s)

    def _failed(self, key: K, error: Exception) -> float:
        count = self._num_failures.get(key, 0) + 1
        self._num_failures[key] = count
        delay_s = self._backoff.delay_s(count, self._rng.random())
        if isinstance(error, PassFailed):
            # What failed has its own back-off, which no event shortens.
            logger.warning("pass failed: %s", error, extra={"key": str(key), "retry_in_s": error.retry_in_s})
            return error.retry_in_s
        if isinstance(error, RetryLater):
            delay_s = max(delay_s, error.retry_after_s)
            # Expected of a busy API server: no traceback.
            logger.warning("pass failed: %s", error, extra={"key": str(key), "retry_in_s": round(delay_s, 3)})
        else:
            logger.exception("pass failed", extra={"key": str(key), "retry_in_s": round(delay_s, 3)})
        return delay_s

    def _expire(self, key: K) -> None:
        del self._timers[key]
        self.add(key)


async def _sleep_until(at_s: float) -> None:
    await asyncio.sleep(max(0.0, at_s - asyncio.get_running_loop().time()))
