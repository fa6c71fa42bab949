"""Several whole operators on one cluster in memory, in virtual time; each may be killed, stopped, cut off."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextvars import ContextVar

from fakeapi.client import get, put
from fakeapi.storage import Change
from operator_world import CONFIG, Link, Object, World
from virtual_time import pass_time, until

from stoker_operator.cluster.client import KubeClient, Reply
from stoker_operator.config import LeaderElection
from stoker_operator.election import Instant
from stoker_operator.leader import Elector
from stoker_operator.metrics import Metrics
from stoker_operator.reconcile.controller import Controller

ELECTION = LeaderElection(namespace="default", name="stoker")
_CALLER: ContextVar["Replica | None"] = ContextVar("caller", default=None)


class ReplicaLink(Link):
    """A link that knows whose it is, and may be cut."""

    def __init__(self, replica: "Replica") -> None:
        super().__init__(replica.world.api)
        self._replica = replica

    async def request(
        self, method: str, path: str, params: Mapping[str, str], body: bytes | None, content_type: str
    ) -> Reply:
        _CALLER.set(self._replica)
        if self._replica.is_cut:
            await asyncio.get_running_loop().create_future()
        if method != "GET" and "leases" not in path:
            self._replica.num_writes += 1
            others = [replica for replica in self._replica.world.replicas if replica is not self._replica]
            self._replica.num_beside += any(replica.is_leading for replica in others)
        reply = await super().request(method, path, params, body, content_type)
        if self.is_dead or self._replica.is_cut:
            await asyncio.get_running_loop().create_future()
        return reply

    async def stream(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        _CALLER.set(self._replica)
        async with contextlib.aclosing(super().stream(path, params)) as lines:
            async for line in lines:
                if self._replica.lag_s:
                    await pass_time(self._replica.lag_s)
                yield line


class Replica:
    """One operator of several: a process that is started again when it ends.

    Attributes:
        num_writes: that it sent, but for those of the Lease.
        num_beside: of these, those sent while another led.
        is_cut: whether it hears nothing from the server, nor that from it.
        ahead_s: what its wall clock shows too much.
        lag_s: how long each line of its watches takes.
        slept_s: for how long it was suspended, as its steady clock shows when it goes on.
    """

    def __init__(self, world: "Replicas", number: int) -> None:
        self.world = world
        self.name = f"stoker-{number}"
        self.num_starts = 0
        self.num_writes = 0
        self.num_beside = 0
        self.is_cut = False
        self.ahead_s = 0.0
        self.lag_s = 0.0
        self.slept_s = 0.0
        self.error: BaseException | None = None
        self.metrics = Metrics()
        self.controller: Controller | None = None
        self.elector: Elector | None = None
        self._may_run = asyncio.Event()
        self._may_run.set()
        self._link: ReplicaLink | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_leading(self) -> bool:
        """Whether it would let a write through now."""
        is_up = self._task is not None and not self._task.done()
        return is_up and self.elector is not None and self.elector.is_leading

    async def supervise(self) -> None:
        """Start it, and again whenever it ended."""
        while True:
            await self._may_run.wait()
            self.num_starts += 1
            self._link, self.metrics = ReplicaLink(self), Metrics()
            rng = random.Random(f"{self.name} {self.num_starts}")
            identity = f"{self.name}_{self.num_starts}"
            self.elector = Elector(self._link, ELECTION, identity, self._instant, rng)
            client = KubeClient(self.elector.transport)
            world = self.world
            self.controller = Controller(
                client, CONFIG, world.kubelet, self.metrics, world.clock, rng, self.name, self.elector
            )
            self._task = asyncio.create_task(self.controller.run())
            try:
                await asyncio.wait([self._task])
            finally:
                self._task.cancel()
                await asyncio.wait([self._task])
            if not self._task.cancelled():
                self.error = self._task.exception()
                self._task.result()
            await pass_time(0.5)

    def kill(self, restart: bool = True) -> None:
        """SIGKILL."""
        if not restart:
            self._may_run.clear()
        if self._link is not None:
            self._link.is_dead = True
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """SIGTERM, and do not start again."""
        self._may_run.clear()
        assert self._task is not None
        self._task.cancel()

    def _instant(self) -> Instant:
        # Whatever the clocks say, they are this replica's own.
        now_s = asyncio.get_running_loop().time()
        return Instant(now_s + 1000.0 * self.num_starts + self.slept_s, now_s + self.ahead_s)


class Replicas(World):
    """A world with several operators in the place of one.

    Args:
        num: how many.
    """

    def __init__(self, num: int = 2) -> None:
        super().__init__()
        put(self.api, "leases", {"metadata": {"name": ELECTION.name, "namespace": ELECTION.namespace}})
        self.replicas = [Replica(self, number) for number in range(num)]
        self.max_leading = 0
        self.api.on_crash = self._crash
        self.api.storage.on_change(self._note_change)

    @contextlib.asynccontextmanager
    async def running(self, kubelet: bool = True) -> AsyncIterator["World"]:
        async with super().running(kubelet):
            try:
                yield self
            except AssertionError as failed:
                # Whatever was waited for: an operator that died of an error is why.
                for replica in self.replicas:
                    if replica.error is not None:
                        raise replica.error from failed
                raise

    async def _supervise(self) -> None:
        async with asyncio.TaskGroup() as group:
            for replica in self.replicas:
                group.create_task(replica.supervise())

    async def settled(self, quiet_s: float = 30.0, deadline_s: float = 900.0) -> None:
        """Wait until nothing but the Lease was written for so long."""

        def so_far() -> tuple[int, ...]:
            numbers = [(replica.num_writes, replica.num_starts) for replica in self.replicas]
            return tuple(number for pair in numbers for number in pair)

        loop = asyncio.get_running_loop()
        ends_at, before = loop.time() + deadline_s, None
        while before != (before := so_far()):
            await pass_time(quiet_s)
            assert loop.time() < ends_at, "the operators never come to rest"

    def leader(self) -> Replica | None:
        """The one that would let a write through."""
        return next((replica for replica in self.replicas if replica.is_leading), None)

    async def led(self, deadline_s: float = 30.0) -> Replica:
        """Wait until somebody leads."""
        await until(self.leader, deadline_s, step_s=0.01)
        found = self.leader()
        assert found is not None
        return found

    def lease(self) -> Object:
        """Spec of the Lease as stored."""
        found = get(self.api, "leases", ELECTION.name)
        return {} if found is None else found.get("spec") or {}

    def _note_change(self, change: Change) -> None:
        del change
        self.max_leading = max(self.max_leading, sum(replica.is_leading for replica in self.replicas))

    def _crash(self) -> None:
        caller = _CALLER.get()
        assert caller is not None
        caller.kill()
