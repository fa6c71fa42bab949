"""The chart's alerts and dashboard ask for series that the operator and the runtime export."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from check_manifests import documents, helm, render
from cluster import build
from cluster.prerequisites import no_build
from stoker_operator.metrics import Metrics as OperatorMetrics
from stoker_operator.model_metrics import watch_models
from stoker_runtime.messages import EngineStats
from stoker_runtime.server.metrics import Metrics as RuntimeMetrics

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = REPOSITORY / "charts" / "stoker" / "files"
TESTS = Path(__file__).with_name("alerts.test.yaml")
ALERTS: list[dict[str, Any]] = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((FILES / "dashboard.json").read_text())


def expressions() -> Iterator[str]:
    yield from (alert["expr"] for alert in ALERTS)
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (found["query"] for found in DASHBOARD["templating"]["list"])


def exported() -> set[str]:
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    metrics.watch_queue(lambda: 0, lambda: 0)
    metrics.watch_scopes(())
    metrics.watch_leadership(lambda: True)
    watch_models(registry, lambda: ())
    text = (
        generate_latest(registry).decode() + RuntimeMetrics("m", EngineStats, lambda: None).render().decode()
    )
    types = dict(re.findall(r"^# TYPE (\S+) (\w+)", text, re.MULTILINE))
    buckets = {f"{name}_bucket" for name, kind in types.items() if kind == "histogram"}
    return set(types) | buckets


def test_every_series_exists() -> None:
    asked = {name for text in expressions() for name in re.findall(r"\b(?:vllm:|stoker_(?!dev_))\w+", text)}
    assert len(asked) >= 12
    assert asked - exported() == set()


def test_every_alert_says_what_and_how_bad() -> None:
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "description"}


def test_every_alert_is_tried_when_it_fires_and_when_it_is_silent() -> None:
    tried = [
        found for test in yaml.safe_load(TESTS.read_text())["tests"] for found in test["alert_rule_test"]
    ]
    names = {alert["alert"] for alert in ALERTS}
    assert names == {found["alertname"] for found in tried if found["exp_alerts"]}
    assert names == {found["alertname"] for found in tried if not found["exp_alerts"]}


@pytest.fixture(scope="module")
def promtool() -> str:
    """The one that is pinned; where nothing can build that, the machine's own."""
    problem = no_build("alerts")
    if problem is None:
        return build.ensure("alerts")["promtool"]
    found = shutil.which("promtool")
    if found is None:
        pytest.skip(f"no promtool: {problem}")
    return found


@pytest.mark.slow
def test_alerts_fire_when_they_should_and_not_else(promtool: str) -> None:
    """The tool is compiled by `make tools`, in half a minute after the cluster's tools."""
    done = subprocess.run(
        [promtool, "test", "rules", str(TESTS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
def test_the_chart_brings_them_when_asked_and_only_then() -> None:
    def made(*values: str) -> dict[str, dict[str, Any]]:
        return {found["kind"]: found for found in documents(render(helm(), values))}

    assert not {"PrometheusRule", "ConfigMap"} & set(made())
    found = made("monitoring.alerts.enabled=true", "monitoring.dashboard.enabled=true")
    assert found["PrometheusRule"]["spec"]["groups"][0]["rules"] == ALERTS
    assert json.loads(found["ConfigMap"]["data"]["stoker.json"]) == DASHBOARD
    assert found["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.integration
@pytest.mark.parametrize("monitor", ["podMonitor", "serviceMonitor"])
def test_series_keep_the_namespace_of_their_modeldeployment(monitor: str) -> None:
    text = render(helm(), (f"monitoring.{monitor}.enabled=true",))
    specs = [found["spec"] for found in documents(text) if found["kind"].endswith("Monitor")]
    (own,) = [spec for spec in specs if "podTargetLabels" not in spec]
    (endpoint,) = own.get("podMetricsEndpoints") or own["endpoints"]
    assert endpoint["honorLabels"] is True
