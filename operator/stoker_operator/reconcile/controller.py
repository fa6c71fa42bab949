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
from stoker_operator.metrics import Metrics
from stoker_operator.model_metrics import watch_models
from stoker_operator.reconcile.caches import Caches, Key
from stoker_operator.reconcile.passes import Reconciler
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
        recorder = EventRecorder(client, clock, instance, metrics.event_dropped)
        self._reconciler = Reconciler(client, self.caches, config, in_flight, recorder, clock)
        metrics.watch_queue(lambda: len(self.queue), lambda: self.queue.num_delayed)
        stores = {kind.plural: store for kind, store in self.caches.stores.items()}
        metrics.watch_stores({plural: store.__len__ for plural, store in stores.items()})
        watch_models(metrics.registry, lambda: self.caches.stores[MODEL_DEPLOYMENTS])

    async def run(self) -> None:
        """Follow the cluster and reconcile until cancelled; a task that dies takes all others with it."""
        try:
            async with asyncio.TaskGroup() as group:
                for reflector in self.caches.reflectors:
                    group.create_task(reflector.run(), name=f"watch {reflector.scope.resource.plural}")
                # No pass before every cache is filled: what is not known yet would look deleted.
                for reflector in self.caches.reflectors:
                    await reflector.synced.wait()
                logger.info("caches are filled", extra={"num_models": len(self.caches.keys())})
                for number in range(NUM_WORKERS):
                    group.create_task(self.queue.work(self._reconciler), name=f"worker {number}")
                await self.queue.resync(self.caches.keys, RESYNC_S)
        finally:
            self.queue.close()

    def hear(self, key: Key, model: Mapping[str, Any]) -> None:
        """Somebody else's watch saw a ModelDeployment; our own status writes are no reason for a pass."""
        if self.caches.is_news(key, model):
            self.queue.add(key)

    def health(self) -> dict[str, Any]:
        """What the liveness probe shows; dead tasks end the process, so answering at all is most of it."""
        return {"waiting_for": self.caches.unsynced(), "queue": len(self.queue)}
