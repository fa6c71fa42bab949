"""A cluster in memory with an operator in it, in virtual time; the operator may be killed at any call."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

from fakeapi.client import delete, everything, get, put
from fakeapi.core import FakeApi
from fakeapi.faults import Call
from fakeapi.kubelet import Kubelet, is_serving
from fakeapi.storage import Change, Storage
from virtual_time import pass_time, run_virtual, until, virtual_now
from write_bounds import assert_writes_are_bounded

from stoker_operator.api import labels
from stoker_operator.cluster.client import KubeClient, Reply
from stoker_operator.config import OperatorConfig
from stoker_operator.metrics import Metrics
from stoker_operator.reconcile.controller import Controller

Object = dict[str, Any]

CONFIG = OperatorConfig(runtime_image="registry.example/stoker-runtime:test", allow_file_sources=True)
NAME = "smol"


class Link:
    """The connection of one operator process: once that is dead, nothing of it reaches the server."""

    def __init__(self, api: FakeApi) -> None:
        self.is_dead = False
        self._api = api

    async def request(
        self, method: str, path: str, params: Mapping[str, str], body: bytes | None, content_type: str
    ) -> Reply:
        if self.is_dead:
            await asyncio.get_running_loop().create_future()
        return await self._api.request(method, path, params, body, content_type)

    async def stream(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(self._api.stream(path, params)) as lines:
            async for line in lines:
                yield line


class World:
    """API server, kubelets and operator.

    Args:
        storage: what was in the cluster an hour ago, copied; None for one empty node.
        config: of the operator when it is started next.
    """

    def __init__(self, storage: Storage | None = None, config: OperatorConfig = CONFIG) -> None:
        self.config = config  # of the operator when it is started next
        # Time goes on: what is there already was there an hour ago.
        self.clock = virtual_now if storage is None else lambda: virtual_now() + timedelta(hours=1)
        self.api = FakeApi(storage.copy(self.clock) if storage else Storage(self.clock), latency_s=0.002)
        self.kubelet = Kubelet(self.api)
        self.num_starts = 0
        self.starts_s: list[float] = []
        self.is_stormy = False  # whether a process that knows nothing of the last one may try a bit more
        self.controller: Controller | None = None
        self.metrics = Metrics()
        self.num_serving: list[int] = []
        self.num_pods: list[int] = []
        self._may_run = asyncio.Event()
        self._may_run.set()
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self.api.on_crash = self.kill
        self.api.storage.on_change(self._note)
        if storage is None:
            self.kubelet.add_node("node-0")

    @contextlib.asynccontextmanager
    async def running(self, kubelet: bool = True) -> AsyncIterator["World"]:
        """Everything runs while the block runs."""
        tasks = [asyncio.create_task(self._supervise())]
        if kubelet:
            tasks.append(asyncio.create_task(self.kubelet.run()))
        try:
            yield self
            for task in tasks:
                assert not task.done(), task.exception()
            assert_writes_are_bounded(self.api, self.starts_s[1:] if self.is_stormy else ())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def kill(self) -> None:
        """SIGKILL: whatever the operator was doing, it does no more."""
        if self._link is not None:
            self._link.is_dead = True
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Kill the operator and do not start it again until ``restart``."""
        self._may_run.clear()
        self.kill()

    def restart(self) -> None:
        """Start the operator again."""
        self._may_run.set()

    async def _supervise(self) -> None:
        """Start the operator, and again from nothing whenever it was killed."""
        while True:
            await self._may_run.wait()
            self.num_starts += 1
            self.starts_s.append(asyncio.get_running_loop().time())
            self._link = Link(self.api)
            rng = random.Random(self.num_starts)
            self.metrics = Metrics()
            self.controller = Controller(
                KubeClient(self._link), self.config, self.kubelet, self.metrics, self.clock, rng, "test"
            )
            self._task = asyncio.create_task(self.controller.run())
            try:
                await asyncio.wait([self._task])
            finally:
                self._task.cancel()
            if not self._task.cancelled():
                self._task.result()
            await pass_time(0.5)

    def apply(self, name: str = NAME, namespace: str = "default", /, **spec: Any) -> Object:
        """What a user applies: this spec, merged into what is there."""
        fresh: Object = {}
        if get(self.api, "modeldeployments", name, namespace) is None:
            fresh = {"model": {"source": "oci://registry.example/smol:1"}, "accelerator": {"perPod": 0}}
        body = {"metadata": {"name": name, "namespace": namespace}, "spec": {**fresh, **spec}}
        return put(self.api, "modeldeployments", body)

    def delete(self, name: str = NAME) -> None:
        """What a user deletes."""
        delete(self.api, "modeldeployments", name)

    def errors(self) -> float:
        """Passes of this operator process that failed."""
        labels = {"result": "error"}
        return self.metrics.registry.get_sample_value("stoker_operator_reconcile_total", labels) or 0.0

    def status(self, name: str = NAME) -> Object:
        """The status as stored."""
        model = get(self.api, "modeldeployments", name)
        return {} if model is None else model.get("status") or {}

    def condition(self, type_: str, name: str = NAME) -> Object:
        """One condition, {} when it is absent."""
        found = [c for c in self.status(name).get("conditions", []) if c["type"] == type_]
        return found[0] if found else {}

    def is_ready(self, name: str = NAME) -> bool:
        """Whether Ready holds for the current generation, and as many as it wants answer."""
        model = get(self.api, "modeldeployments", name)
        ready = self.condition("Ready", name)
        return (
            model is not None
            and self._num_short(model) <= 0
            and ready.get("status") == "True"
            and ready.get("observedGeneration") == model["metadata"]["generation"]
        )

    @staticmethod
    def _num_short(model: Object) -> int:
        """Replicas that do not answer: while more are being started, Ready goes by those before."""
        spec, status = model["spec"], model.get("status") or {}
        num_wanted: int = 0 if spec.get("suspend") else spec.get("replicas", 1)
        num_ready: int = status.get("readyReplicas", 0)
        return num_wanted - num_ready

    def pods(self) -> list[Object]:
        """All pods."""
        return everything(self.api, "pods")

    def pod_names(self) -> list[str]:
        """Names of all pods."""
        return [pod["metadata"]["name"] for pod in self.pods()]

    async def ready(self, name: str = NAME, deadline_s: float = 600.0) -> None:
        """Wait for Ready."""
        await until(lambda: self.is_ready(name), deadline_s, step_s=0.25)

    async def settled(self, quiet_s: float = 30.0, deadline_s: float = 900.0) -> None:
        """Wait until the operator has written nothing for so long."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + deadline_s
        while True:
            num_writes, num_starts = len(self.api.writes), self.num_starts
            await pass_time(quiet_s)
            if (num_writes, num_starts) == (len(self.api.writes), self.num_starts):
                return
            assert loop.time() < ends_at, "the operator never comes to rest"

    def _note(self, change: Change) -> None:
        if change.plural == "pods":
            pods = self.pods()
            self.num_serving.append(sum(map(is_serving, pods)))
            self.num_pods.append(sum(not _is_leaving(pod) for pod in pods))

    def picture(self) -> Object:
        """All objects but Events, without what differs from run to run; pods are numbered anew."""
        renamed = {name: f"{name.rpartition('-')[0]}-#{i}" for i, name in enumerate(sorted(self.pod_names()))}
        result: Object = {}
        for plural in ("modeldeployments", "pods", "services", "poddisruptionbudgets", "controllerrevisions"):
            for obj in everything(self.api, plural):
                name = obj["metadata"]["name"]
                result[f"{plural}/{renamed.get(name, name)}"] = _normal(obj, renamed)
        return result


def play(
    scenario: Callable[[World], Awaitable[None]], kubelet: bool = True, config: OperatorConfig = CONFIG
) -> World:
    """A scenario in a world of its own, in virtual time."""
    world = World(config=config)

    async def main() -> None:
        async with world.running(kubelet):
            await scenario(world)

    run_virtual(main())
    return world


def _is_leaving(pod: Object) -> bool:
    metadata = pod["metadata"]
    return "deletionTimestamp" in metadata or metadata.get("labels", {}).get(labels.SERVING) == "false"


_TIMES = {"creationTimestamp", "lastTransitionTime", "startTime", "startedAt"}
_VOLATILE = frozenset(
    {"uid", "resourceVersion", "managedFields", "clusterIP", "podIP", "podIPs", "generation", *_TIMES}
)


def _normal(value: Any, renamed: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _normal(item, renamed) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [_normal(item, renamed) for item in value]
    return renamed.get(value, value) if isinstance(value, str) else value


def writes_of(world: World, start: int = 0) -> list[str]:
    """The operator's writes as "METHOD last/parts", Events left out."""

    def text(call: Call) -> str:
        return f"{call.method} {'/'.join(call.path.split('/')[-2:])}"

    return [text(call) for call in world.api.writes[start:] if "events.k8s.io" not in call.path]


Predicate = Callable[[], object]
