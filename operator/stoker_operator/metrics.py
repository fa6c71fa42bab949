"""The operator's Prometheus metrics, all of them in one place; docs/operations.md explains each.

``Metrics`` is handed to the queue, the informers and the API client, which know it only as an observer.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from stoker_operator.cluster.resources import Resource
from stoker_operator.informer.reflector import Reflector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PLURAL = re.compile(
    r"/(?:api|apis/[^/]+)/[^/]+(?:/namespaces/[^/]+)?/(?P<plural>[a-z]+)(?:/[^/]+)?(?:/(?P<sub>[a-z]+))?$"
)


class Metrics:
    """Counters, gauges and histograms of one operator process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._passes = Counter(
            "stoker_operator_reconcile",
            "Reconcile passes by how they ended.",
            ["result"],
            registry=self.registry,
        )
        self._pass_seconds = Histogram(
            "stoker_operator_reconcile_duration_seconds",
            "Duration of reconcile passes.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._restarts = Counter(
            "stoker_operator_watch_restarts",
            "Watches that ended and were started again.",
            ["resource", "reason"],
            registry=self.registry,
        )
        self._requests = Counter(
            "stoker_operator_api_requests",
            "Calls of the Kubernetes API; code 0 means that no answer came.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "stoker_operator_api_request_duration_seconds",
            "Duration of writes to the Kubernetes API.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._dropped_events = Counter(
            "stoker_operator_events_dropped",
            "Kubernetes Events that could not be written.",
            registry=self.registry,
        )
        self._pods_asked = Counter(
            "stoker_operator_pods_asked",
            "Calls of draining pods for their requests in flight, by what came of them.",
            ["result"],
            registry=self.registry,
        )
        for result in ("ok", "error"):
            self._passes.labels(result)
        for result in ("answered", "silent", "error"):
            self._pods_asked.labels(result)

    def watch_queue(self, num_ready: Callable[[], float], num_delayed: Callable[[], float]) -> None:
        """Report the queue's depth from now on."""
        ready = Gauge("stoker_operator_queue_depth", "Keys that wait for a worker.", registry=self.registry)
        ready.set_function(num_ready)
        delayed = Gauge("stoker_operator_queue_delayed", "Keys that wait for a time.", registry=self.registry)
        delayed.set_function(num_delayed)

    def watch_leadership(self, is_leading: Callable[[], bool]) -> None:
        """Report from now on whether this process leads."""
        gauge = Gauge(
            "stoker_operator_is_leader",
            "1 for the operator that reconciles, 0 for one that waits to.",
            registry=self.registry,
        )
        gauge.set_function(is_leading)

    def watch_stores(self, counts: dict[str, Callable[[], float]]) -> None:
        """Report how many objects of each kind are cached from now on."""
        gauge = Gauge(
            "stoker_operator_cached_objects", "Objects in the caches.", ["resource"], registry=self.registry
        )
        for plural, count in counts.items():
            gauge.labels(plural).set_function(count)

    def watch_scopes(self, reflectors: Iterable[Reflector]) -> None:
        """Report from now on which caches follow the cluster, of those that have to."""
        gauge = Gauge(
            "stoker_operator_scope_synced",
            "Whether the cache of a kind in a namespace (all of them: empty) follows the API server.",
            ["resource", "namespace"],
            registry=self.registry,
        )
        for reflector in reflectors:
            scope = reflector.scope
            if scope.required:
                child = gauge.labels(scope.resource.plural, scope.namespace or "")
                child.set_function(partial(_is_current, reflector))

    def pass_done(self, seconds: float, error: Exception | None) -> None:
        """See ``workqueue.QueueObserver``."""
        self._passes.labels("ok" if error is None else "error").inc()
        self._pass_seconds.observe(seconds)

    def pod_asked(self, result: str) -> None:
        """See ``reconcile.readings.ReadingsObserver``."""
        self._pods_asked.labels(result).inc()

    def watch_restarted(self, resource: Resource, reason: str) -> None:
        """See ``informer.reflector.WatchObserver``."""
        self._restarts.labels(resource.plural, reason).inc()

    def request_done(self, method: str, path: str, code: int, seconds: float) -> None:
        """See ``cluster.transport.RequestObserver``."""
        match = _PLURAL.match(path)
        plural = "other" if match is None else "/".join(filter(None, (match["plural"], match["sub"])))
        self._requests.labels(method.lower(), plural, str(code)).inc()
        if method != "GET":
            self._request_seconds.observe(seconds)

    def event_dropped(self) -> None:
        """A Kubernetes Event was lost."""
        self._dropped_events.inc()


def _is_current(reflector: Reflector) -> float:
    return float(reflector.is_current)
