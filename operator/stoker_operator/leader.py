"""Runs for leader and stays it: calls and clocks around the decisions of ``election``.

A follower reads the Lease every second and watches it, for the moment at which a leader gives it back.
Whoever leads runs the term that it is given, until it stops, loses the Lease, or cannot renew it; then
every write ends before others may take the Lease.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from stoker_operator import election
from stoker_operator.cluster.client import KubeClient, Transport
from stoker_operator.cluster.errors import AlreadyExists, ApiError, ApiUnreachable, Conflict, NotFound
from stoker_operator.cluster.fence import FencedTransport
from stoker_operator.cluster.leases import Leases
from stoker_operator.cluster.resources import LEASES
from stoker_operator.config import LeaderElection
from stoker_operator.election import Candidate, Instant, Lease, Read, Wait, Write

logger = logging.getLogger(__name__)

WATCH_S = 300
# Linux has a clock that goes on while the machine sleeps.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

Term = Callable[[], Awaitable[None]]


def local_clock() -> Instant:
    """This machine's clocks."""
    return Instant(time.clock_gettime(_STEADY), time.time())


class Elector:
    """One candidate; ``transport`` is for everything that only the leader may do.

    Args:
        transport: to the API server.
        settings: which Lease, and the times.
        identity: name of this start of this process.
        clock: the time.
        rng: jitter.
    """

    def __init__(
        self,
        transport: Transport,
        settings: LeaderElection,
        identity: str,
        clock: Callable[[], Instant] = local_clock,
        rng: random.Random | None = None,
    ) -> None:
        self.identity = identity
        self.transport = FencedTransport(transport, self._writable_s)
        self._settings = settings
        self._client = KubeClient(transport)
        self._leases = Leases(self._client, settings, identity)
        self._clock = clock
        self._rng = rng or random.Random()
        self._candidate = Candidate(identity=identity, timing=settings)
        self._is_in_term = False
        self._given_back = asyncio.Event()
        self._has_read = asyncio.Event()  # the Lease, so that it is known from which version to watch it
        self._told: object = None

    @property
    def is_leading(self) -> bool:
        """Whether this process may write now."""
        return self._writable_s() > 0

    @property
    def lease(self) -> dict[str, Any] | None:
        """The Lease as this process wrote or read it last, for Events about it."""
        return self._leases.last

    async def run(self, term: Term) -> None:
        """Lead whenever nobody else does, until cancelled; then give the Lease back.

        Args:
            term: what a leader does until it is cancelled; an error in it ends everything.
        """
        try:
            while True:
                async with _beside(self._watch()):
                    await self._until(lambda: self._left_s() > 0)
                await self._lead(term)
        finally:
            await self._give_back()

    async def _lead(self, term: Term) -> None:
        """Run one term to its end."""
        logger.info("leading from now on", extra={"identity": self.identity})
        self._is_in_term = True
        async with _beside(term()) as working, _beside(self._until(lambda: self._left_s() <= 0)) as keeping:
            try:
                await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                # From here on no write is sent, while those that were sent come to their end.
                self._is_in_term = False
        logger.warning("not leading any more: %s", self._why(), extra={"identity": self.identity})
        self._candidate = election.stepped_down(self._candidate)
        await self.transport.settle()

    def _why(self) -> str:
        claim = self._candidate.claim
        if claim is not None and claim.holder not in (self.identity, election.UNSEEN):
            return f"{claim.holder} holds the Lease"
        return f"the Lease was not renewed for {self._settings.renew_deadline_s:g} s"

    async def _give_back(self) -> None:
        """Make way at once, unless a write may still be under way or others may lead by now."""
        await self.transport.settle()
        lease = self._candidate.lease
        for _ in range(2):
            left_s = self._left_s()
            if left_s <= 0 or lease is None:
                return
            try:
                async with asyncio.timeout(left_s):
                    await self._leases.release(lease.version)
                logger.info("gave the Lease back", extra={"identity": self.identity})
                return
            except (Conflict, NotFound):
                # A renewal was under way; or somebody else wrote.
                lease = await self._reread(left_s)
                if lease is None or lease.claim is None or lease.claim.holder != self.identity:
                    return
            except (ApiError, ApiUnreachable, TimeoutError) as error:
                logger.warning("the Lease was not given back, it ends by itself: %s", error)
                return

    async def _reread(self, left_s: float) -> Lease | None:
        try:
            async with asyncio.timeout(left_s):
                return await self._leases.read()
        except (ApiError, ApiUnreachable, TimeoutError) as error:
            logger.warning("the Lease was not given back, it ends by itself: %s", error)
            return None

    async def _until(self, is_over: Callable[[], bool]) -> None:
        """Go on with the election until something holds."""
        while not is_over():
            step = election.next_step(self._candidate, self._clock())
            if isinstance(step, Wait):
                await self._wait(step.seconds)
            else:
                await self._call(step)

    async def _call(self, step: Read | Write) -> None:
        """Make one call and take in what came of it."""
        sent_at, before = self._clock(), self._candidate
        try:
            async with asyncio.timeout(election.call_timeout_s(before, sent_at)):
                if isinstance(step, Read):
                    read = await self._leases.read()
                    self._has_read.set()
                    self._candidate = election.after_read(before, self._clock(), read, self._rng.random())
                else:
                    wall = datetime.fromtimestamp(sent_at.wall, UTC)
                    lease = await self._leases.claim(step, before.lease, wall)
                    self._candidate = election.after_write(before, sent_at, self._clock(), lease)
        except (Conflict, AlreadyExists, NotFound):
            self._candidate = election.after_conflict(before, self._clock(), self._rng.random())
        except (ApiError, ApiUnreachable, TimeoutError) as error:
            at_least_s = error.retry_after_s if isinstance(error, ApiError) else 0.0
            unit = self._rng.random()
            self._candidate = election.after_failure(before, self._clock(), unit, at_least_s)
            self._say_once(f"the Lease cannot be reached: {str(error) or 'no answer'}")
        else:
            self._say_once(None)

    async def _wait(self, seconds: float) -> None:
        """Wait, or until the Lease is given back."""
        try:
            async with asyncio.timeout(seconds):
                await self._given_back.wait()
        except TimeoutError:
            return
        self._given_back.clear()
        self._candidate = election.look_now(self._candidate)

    async def _watch(self) -> None:
        """Notice at once that the Lease is given back; looking now and then would find it later."""
        await self._has_read.wait()
        while True:
            lease = self._candidate.lease
            if lease is not None:
                try:
                    await self._hear(lease.version)
                except (ApiError, ApiUnreachable) as error:
                    logger.debug("the watch of the Lease ended: %s", error)
            await asyncio.sleep(self._settings.retry_period_s)

    async def _hear(self, version: str) -> None:
        settings = self._settings
        field = f"metadata.name={settings.name}"
        events = self._client.watch(LEASES, settings.namespace, "", version, WATCH_S, field)
        async with aclosing(events):
            async for event in events:
                metadata = event.object.get("metadata") or {}
                if metadata.get("name") == settings.name and self._leases.parse(event.object).is_released:
                    self._given_back.set()

    def _left_s(self) -> float:
        return election.remaining_s(self._candidate, self._clock())

    def _writable_s(self) -> float:
        return self._left_s() if self._is_in_term else 0.0

    def _say_once(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self._told:
            logger.warning(trouble)
        self._told = trouble


@asynccontextmanager
async def _beside(work: Awaitable[None]) -> AsyncIterator["asyncio.Task[None]"]:
    """Do something while the block runs; it has come to its end when the block has."""

    async def run() -> None:
        await work

    task = asyncio.create_task(run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()
