"""The control loop as a whole: caches, queue and workers, started and stopped together."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.events import EventRecorder
from stoker_operator.cluster.inflight import InFlightReader
from stoker_operator.cluster.resources import MODEL_DEPLOYMENTS
from stoker_operator.config import OperatorConfig
from stoker_operator.lanes import Priority
from stoker_operator.metrics import Metrics
from stoker_operator.model_metrics import watch_models
from stoker_operator.reconcile.caches import Caches, Key
from stoker_operator.reconcile.namespaces import Namespaces
from stoker_operator.reconcile.passes import Reconciler
from stoker_operator.reconcile.readings import Readings
from stoker_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

NUM_WORKERS = 4
RESYNC_S = 300.0


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
    ) -> None:
        rng = rng or random.Random()
        self.queue: WorkQueue[Key] = WorkQueue(rng=rng, observer=metrics)
        self.caches = Caches(
            client,
            config.watch_namespaces,
            self.queue.add,
            rng,
            clock,
            metrics,
            drains_cordoned=config.cordoned_nodes == "drain",
        )
        self._namespaces = Namespaces(self.caches.reflectors, self._opened)
        self._closed: set[Key] = set()  # keys that wait for their namespace
        recorder = EventRecorder(client, clock, instance, metrics.event_dropped)
        self._readings = Readings(in_flight, clock, self.queue.add, metrics)
        self._reconciler = Reconciler(client, self.caches, config, self._readings, recorder, clock)
        metrics.watch_queue(lambda: len(self.queue), lambda: self.queue.num_delayed)
        stores = {kind.plural: store for kind, store in self.caches.stores.items()}
        metrics.watch_stores({plural: store.__len__ for plural, store in stores.items()})
        metrics.watch_scopes(self.caches.reflectors)
        watch_models(metrics.registry, lambda: self.caches.stores[MODEL_DEPLOYMENTS])

    async def run(self) -> None:
        """Follow the cluster and reconcile until cancelled; a task that dies takes all others with it."""
        try:
            async with asyncio.TaskGroup() as group:
                for reflector in self.caches.reflectors:
                    group.create_task(reflector.run(), name=f"watch {reflector.scope.resource.plural}")
                await self._namespaces.any_open.wait()
                group.create_task(self._readings.run(), name="readings")
                for number in range(NUM_WORKERS):
                    group.create_task(self.queue.work(self._pass), name=f"worker {number}")
                await self.queue.resync(self.caches.keys, RESYNC_S)
        finally:
            self.queue.close()

    def hear(self, key: Key, model: Mapping[str, Any]) -> None:
        """Somebody else's watch saw a ModelDeployment; our own status writes are no reason for a pass."""
        if self.caches.is_news(key, model):
            self.queue.add(key)

    def _opened(self, namespace: str | None) -> None:
        """The caches of a namespace are filled: what came or happened meanwhile is due now."""
        keys = {key for key in self._closed.union(self.caches.keys()) if namespace in (None, key[0])}
        self._closed -= keys
        extra = {"num_models": len(keys)}
        logger.info(
            "caches are filled", extra=extra if namespace is None else {**extra, "namespace": namespace}
        )
        # Whoever edits meanwhile need not wait until all have been looked at.
        self.queue.add_all(sorted(keys), Priority.LOW)

    async def _pass(self, key: Key) -> float | None:
        """One pass, where everything may be read: what is not known would look deleted, what is old alive."""
        if self._namespaces.is_open(key[0]):
            return await self._reconciler(key)
        self._closed.add(key)
        return None

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether the readiness probe succeeds, and what it shows."""
        return self._namespaces.readiness()

    def health(self) -> dict[str, Any]:
        """What the liveness probe shows; dead tasks end the process, so answering at all is most of it."""
        return {"waiting_for": self.caches.unsynced(), "queue": len(self.queue)}
