"""The control loop as a whole: caches, queue and workers, started and stopped together."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.events import EventRecorder
from stoker_operator.cluster.inflight import InFlightReader
from stoker_operator.cluster.resources import MODEL_DEPLOYMENTS
from stoker_operator.config import OperatorConfig
from stoker_operator.lanes import Priority
from stoker_operator.leader import Elector
from stoker_operator.metrics import Metrics
from stoker_operator.model_metrics import watch_models
from stoker_operator.reconcile.caches import Caches, Key
from stoker_operator.reconcile.namespaces import Namespaces
from stoker_operator.reconcile.passes import Reconciler
from stoker_operator.reconcile.readings import Readings
from stoker_operator.status import Event
from stoker_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

NUM_WORKERS = 4
RESYNC_S = 300.0
MAX_CHANGED_LATELY = 1000


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


class Controller:
    """Everything that reconciles, on one event loop.

    Args:
        client: the API.
        config: the operator's settings.
        in_flight: asks draining pods for their requests.
        metrics: counts.
        clock: the time.
        rng: jitter.
        instance: name of this process in Events.
        elector: says when this process may write; None when it is alone.
    """

    def __init__(
        self,
        client: KubeClient,
        config: OperatorConfig,
        in_flight: InFlightReader,
        metrics: Metrics,
        clock: Callable[[], datetime] = utc_now,
        rng: random.Random | None = None,
        instance: str = "stoker-operator",
        elector: Elector | None = None,
    ) -> None:
        self._client = client
        self._config = config
        self._in_flight = in_flight
        self._metrics = metrics
        self._clock = clock
        self._rng = rng or random.Random()
        self._instance = instance
        self._elector = elector
        self.is_leading = False
        # Of a follower: which keys changed last, the newest at the end.
        self._changed_lately: dict[Key, None] = {}
        self.queue: WorkQueue[Key] = WorkQueue(rng=self._rng, observer=metrics)
        self.caches = Caches(
            client,
            config.watch_namespaces,
            self._changed,
            self._rng,
            clock,
            metrics,
            drains_cordoned=config.cordoned_nodes == "drain",
        )
        self._namespaces = Namespaces(self.caches.reflectors, self._opened)
        self._closed: set[Key] = set()  # keys that wait for their namespace
        metrics.watch_queue(lambda: len(self.queue), lambda: self.queue.num_delayed)
        metrics.watch_leadership(lambda: self.is_leading)
        stores = {kind.plural: store for kind, store in self.caches.stores.items()}
        metrics.watch_stores({plural: store.__len__ for plural, store in stores.items()})
        metrics.watch_scopes(self.caches.reflectors)
        watch_models(metrics.registry, self._models_to_tell)

    async def run(self) -> None:
        """Follow the cluster until cancelled, and reconcile while leading; a task that dies ends all."""
        async with asyncio.TaskGroup() as group:
            for reflector in self.caches.reflectors:
                group.create_task(reflector.run(), name=f"watch {reflector.scope.resource.plural}")
            await self._namespaces.any_open.wait()
            if self._elector is None:
                await self._lead()
            else:
                await self._elector.run(self._lead)

    async def _lead(self) -> None:
        """Reconcile until cancelled. What passes remember ends with this: others may lead afterwards."""
        self.queue = WorkQueue(rng=self._rng, observer=self._metrics)
        recorder = EventRecorder(self._client, self._clock, self._instance, self._metrics.event_dropped)
        readings = Readings(self._in_flight, self._clock, self._changed, self._metrics)
        reconciler = Reconciler(self._client, self.caches, self._config, readings, recorder, self._clock)

        async def reconcile(key: Key) -> float | None:
            return await self._pass(key, reconciler)

        # What the last leader was at comes first.
        self.queue.add_all(reversed(self._changed_lately))
        self.queue.add_all(self.caches.keys(), Priority.LOW)
        self._changed_lately.clear()
        self.is_leading = True
        try:
            async with asyncio.TaskGroup() as group:
                if self._elector is not None and self._elector.lease is not None:
                    event = Event("Normal", "LeaderElection", "Lead", f"{self._elector.identity} leads")
                    group.create_task(recorder.record(self._elector.lease, event), name="event")
                group.create_task(readings.run(), name="readings")
                for number in range(NUM_WORKERS):
                    group.create_task(self.queue.work(reconcile), name=f"worker {number}")
                await self.queue.resync(self.caches.keys, RESYNC_S)
        finally:
            self.is_leading = False
            self.queue.close()

    def _changed(self, key: Key, priority: Priority = Priority.HIGH) -> None:
        if self.is_leading:
            self.queue.add(key, priority)
            return
        self._changed_lately.pop(key, None)
        self._changed_lately[key] = None
        if len(self._changed_lately) > MAX_CHANGED_LATELY:
            del self._changed_lately[next(iter(self._changed_lately))]

    def _models_to_tell(self) -> Iterable[dict[str, Any]]:
        """Those of a follower would be counted twice."""
        return self.caches.stores[MODEL_DEPLOYMENTS] if self.is_leading else ()

    def hear(self, key: Key, model: Mapping[str, Any]) -> None:
        """Somebody else's watch saw a ModelDeployment; our own status writes are no reason for a pass."""
        if self.caches.is_news(key, model):
            self._changed(key)

    def _opened(self, namespace: str | None) -> None:
        """The caches of a namespace are filled: what came or happened meanwhile is due now."""
        keys = {key for key in self._closed.union(self.caches.keys()) if namespace in (None, key[0])}
        self._closed -= keys
        extra = {"num_models": len(keys)}
        logger.info(
            "caches are filled", extra=extra if namespace is None else {**extra, "namespace": namespace}
        )
        if self.is_leading:
            # Whoever edits meanwhile need not wait until all have been looked at.
            self.queue.add_all(sorted(keys), Priority.LOW)

    async def _pass(self, key: Key, reconciler: Reconciler) -> float | None:
        """One pass, where everything may be read: what is not known would look deleted, what is old alive."""
        if self._namespaces.is_open(key[0]):
            return await reconciler(key)
        self._closed.add(key)
        return None

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether the readiness probe succeeds, and what it shows."""
        return self._namespaces.readiness()

    def health(self) -> dict[str, Any]:
        """What the liveness probe shows; dead tasks end the process, so answering at all is most of it."""
        waiting = self.caches.unsynced()
        return {"waiting_for": waiting, "is_leading": self.is_leading, "queue": len(self.queue)}
