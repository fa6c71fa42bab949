"""A few series for each ModelDeployment, named as kube-state-metrics names those of Kubernetes' own kinds.

They are read from the cache when somebody asks. Nothing is kept: those of a ModelDeployment go with it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from stoker_operator.status.summary import Summary, summary

_LABELS = ("namespace", "modeldeployment")
_COUNTS: tuple[tuple[str, str, Callable[[Summary], int]], ...] = (
    ("spec_replicas", "Replicas that should answer; none while suspended.", lambda found: found.num_wanted),
    ("status_replicas", "Replicas that exist.", lambda found: found.num_existing),
    ("status_replicas_ready", "Replicas of any revision that answer.", lambda found: found.num_ready),
    ("status_replicas_updated", "Replicas of the current revision.", lambda found: found.num_updated),
)


class ModelMetrics(Collector):
    """The series.

    Args:
        models: all ModelDeployments as stored; called in another thread than the operator's.
    """

    def __init__(self, models: Callable[[], Iterable[dict[str, Any]]]) -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the series of this moment."""
        found = [summary(model) for model in self._models()]
        for name, text, count in _COUNTS:
            family = GaugeMetricFamily(f"stoker_modeldeployment_{name}", text, labels=_LABELS)
            for one in found:
                family.add_metric((one.namespace, one.name), count(one))
            yield family
        phase = GaugeMetricFamily(
            "stoker_modeldeployment_status_phase",
            "1 for the phase that a ModelDeployment is in, and why.",
            labels=(*_LABELS, "phase", "reason"),
        )
        for one in found:
            phase.add_metric((one.namespace, one.name, one.phase, one.reason), 1)
        yield phase


def watch_models(registry: CollectorRegistry, models: Callable[[], Iterable[dict[str, Any]]]) -> None:
    """Report ModelDeployments from now on."""
    registry.register(ModelMetrics(models))
