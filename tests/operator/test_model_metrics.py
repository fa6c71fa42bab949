"""Series per ModelDeployment: what they say, how many there are, and that they go with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from operator_builders import make_model
from operator_world import NAME, World, play
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from virtual_time import until

from stoker_operator.model_metrics import watch_models
from stoker_operator.status.summary import Summary, summary

OPERATIONS = (Path(__file__).parents[2] / "docs/operations.md").read_text()


def condition(type_: str, status: str, reason: str, generation: int = 1) -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": reason, "observedGeneration": generation}


def page(*models: dict[str, Any]) -> list[str]:
    registry = CollectorRegistry()
    watch_models(registry, lambda: models)
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


READY = condition("Ready", "True", "Ready")
LOADING = condition("Ready", "False", "LoadingModel")


@pytest.mark.parametrize(
    ("conditions", "phase"),
    [
        ([], ("Unknown", "Unknown")),
        ([READY, condition("Reconciling", "False", "AsExpected")], ("Ready", "Ready")),
        ([READY, condition("Reconciling", "True", "RemovingPods")], ("Ready", "Ready")),
        ([LOADING, condition("Reconciling", "True", "LoadingModel")], ("Reconciling", "LoadingModel")),
        ([condition("Ready", "False", "Paused")], ("NotReady", "Paused")),
        ([LOADING, condition("Stalled", "True", "DiskFull")], ("Stalled", "DiskFull")),
        ([condition("Ready", "True", "Ready", generation=0)], ("Unknown", "Unknown")),
        ([condition("Ready", "False", "0" * 1024)], ("NotReady", "Other")),
    ],
)
def test_phase_and_reason(conditions: list[dict[str, Any]], phase: tuple[str, str]) -> None:
    found = summary(make_model(status={"conditions": conditions}))
    assert (found.phase, found.reason) == phase


def test_counts() -> None:
    status = {"replicas": 4, "readyReplicas": 2, "updatedReplicas": 1}
    assert summary(make_model(replicas=3, status=status)) == Summary(
        "team", "smol", 3, 4, 2, 1, "Unknown", "Unknown"
    )
    assert summary(make_model(replicas=3, suspend=True)).num_wanted == 0
    assert summary(make_model()).num_ready == 0


def test_five_series_for_each() -> None:
    lines = page(*(make_model(name, status={"conditions": [READY]}) for name in ("a", "b", "c")))
    assert len(lines) == 15
    where = 'modeldeployment="b",namespace="team"'
    assert f"stoker_modeldeployment_spec_replicas{{{where}}} 1.0" in lines
    assert f'stoker_modeldeployment_status_phase{{{where},phase="Ready",reason="Ready"}} 1.0' in lines


def test_the_page_names_every_one_and_no_other() -> None:
    exported = {line.partition("{")[0] for line in page(make_model())}
    assert set(re.findall(r"`(stoker_modeldeployment_\w+)", OPERATIONS)) == exported


def test_they_follow_the_object_and_go_with_it() -> None:
    def series(world: World) -> list[str]:
        assert world.controller is not None
        text = generate_latest(world.metrics.registry).decode()
        return [line for line in text.splitlines() if line.startswith("stoker_modeldeployment_")]

    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        where = f'modeldeployment="{NAME}",namespace="default"'
        assert f"stoker_modeldeployment_status_replicas_ready{{{where}}} 2.0" in series(world)
        assert sum('phase="' in line for line in series(world)) == 1
        world.delete()
        await until(lambda: series(world) == [], 60.0)

    play(scenario)
