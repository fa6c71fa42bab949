import re
from pathlib import Path

import pytest
from fakeapi.core import FakeApi
from prometheus_client.exposition import generate_latest

from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.resources import NODES, PODS
from stoker_operator.informer.reflector import Reflector, Scope
from stoker_operator.informer.store import Store
from stoker_operator.metrics import Metrics

ROOT = Path(__file__).parents[2]


def make_metrics() -> Metrics:
    metrics = Metrics()
    metrics.watch_queue(lambda: 2.0, lambda: 1.0)
    metrics.watch_leadership(lambda: True)
    metrics.watch_stores({"pods": lambda: 7.0})
    scopes = (Scope(PODS, "team"), Scope(NODES, required=False))
    metrics.watch_scopes(Reflector(KubeClient(FakeApi()), scope, Store()) for scope in scopes)
    return metrics


def page(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    exported = set(re.findall(r"^# TYPE (stoker_\w+) ", page(make_metrics()), re.MULTILINE))
    exported = {name for name in exported if not name.endswith("_created")}
    documented = set(re.findall(r"`(stoker_operator_\w+)", (ROOT / "docs/operations.md").read_text()))
    assert exported == documented


def test_passes_are_counted_by_their_end() -> None:
    metrics = make_metrics()
    metrics.pass_done(0.1, None)
    metrics.pass_done(0.1, ValueError())
    metrics.pass_done(0.1, ValueError())
    assert 'stoker_operator_reconcile_total{result="ok"} 1.0' in page(metrics)
    assert 'stoker_operator_reconcile_total{result="error"} 2.0' in page(metrics)
    assert "stoker_operator_reconcile_duration_seconds_count 3.0" in page(metrics)


def test_gauges_read_the_queue_and_the_caches() -> None:
    text = page(make_metrics())
    assert "stoker_operator_queue_depth 2.0" in text
    assert "stoker_operator_queue_delayed 1.0" in text
    assert "stoker_operator_is_leader 1.0" in text
    assert 'stoker_operator_cached_objects{resource="pods"} 7.0' in text
    assert 'stoker_operator_scope_synced{namespace="team",resource="pods"} 0.0' in text
    assert 'stoker_operator_scope_synced{namespace="",resource="nodes"}' not in text


def test_restarts_and_lost_events_are_counted() -> None:
    metrics = make_metrics()
    metrics.watch_restarted(PODS, "gone")
    metrics.event_dropped()
    assert 'stoker_operator_watch_restarts_total{reason="gone",resource="pods"} 1.0' in page(metrics)
    assert "stoker_operator_events_dropped_total 1.0" in page(metrics)


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/api/v1/pods", "pods"),
        ("/api/v1/namespaces/ns/pods/p", "pods"),
        ("/apis/stoker.dev/v1alpha1/namespaces/ns/modeldeployments/m/status", "modeldeployments/status"),
        ("/version", "other"),
    ],
)
def test_requests_are_labelled_by_resource_never_by_name(path: str, resource: str) -> None:
    metrics = make_metrics()
    metrics.request_done("PATCH", path, 200, 0.1)
    wanted = f'stoker_operator_api_requests_total{{code="200",resource="{resource}",verb="patch"}} 1.0'
    assert wanted in page(metrics)
