"""What GitOps tools are tried with is what the operator writes today; `make golden` records it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from status_situations import SITUATIONS, Situation, record

REPOSITORY = Path(__file__).resolve().parents[2]
CHECK = REPOSITORY / "contrib/argo-cd/resource_customizations/stoker.dev/ModelDeployment"
RECORDED = CHECK / "testdata"
WAITING = "waiting for the operator to see this generation"


def expectation(situation: Situation, recorded: dict[str, Any]) -> dict[str, Any]:
    """What Argo CD's own tests read: the health of one file of test data."""
    conditions = {found["type"]: found for found in recorded["status"].get("conditions", ())}
    is_seen = recorded["status"].get("observedGeneration") == recorded["metadata"]["generation"]
    told = conditions["Stalled" if situation.argo_cd == "Degraded" else "Ready"] if is_seen else {}
    return {
        "healthStatus": {"status": situation.argo_cd, "message": told.get("message", WAITING)},
        "inputPath": f"testdata/{situation.name}.yaml",
    }


def written(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=110)


@pytest.fixture(scope="module")
def played() -> dict[str, dict[str, Any]]:
    found = {situation.name: record(situation) for situation in SITUATIONS}
    if os.environ.get("STOKER_WRITE_GOLDEN"):
        for old in RECORDED.glob("*.yaml"):
            old.unlink()
        for name, recorded in found.items():
            (RECORDED / f"{name}.yaml").write_text(written(recorded))
        tests = [expectation(situation, found[situation.name]) for situation in SITUATIONS]
        (CHECK / "health_test.yaml").write_text(written({"tests": tests}))
    return found


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_the_recorded_status_is_what_the_operator_writes(
    situation: Situation, played: dict[str, dict[str, Any]]
) -> None:
    recorded = yaml.safe_load((RECORDED / f"{situation.name}.yaml").read_text())
    assert recorded == played[situation.name], "run `make golden`, and look at the difference"


def test_no_recording_is_left_over_and_each_has_its_expectation(played: dict[str, dict[str, Any]]) -> None:
    assert {path.stem for path in RECORDED.glob("*.yaml")} == set(played)
    held = yaml.safe_load((CHECK / "health_test.yaml").read_text())["tests"]
    assert held == [expectation(situation, played[situation.name]) for situation in SITUATIONS]
