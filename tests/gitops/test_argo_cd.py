"""The health check for Argo CD over recorded statuses, in a Lua like the one that it has there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa import lua51

REPOSITORY = Path(__file__).resolve().parents[2]
CHECK = REPOSITORY / "contrib/argo-cd/resource_customizations/stoker.dev/ModelDeployment"
SCRIPT = (CHECK / "health.lua").read_text()
TESTS: list[dict[str, Any]] = yaml.safe_load((CHECK / "health_test.yaml").read_text())["tests"]
# Argo CD opens these libraries for health checks and no others, unless it is told to.
LIBRARIES = {"_G", "package", "table", "os"}
# What it takes a script's word for.
HEALTH = {"Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown"}


def health(obj: dict[str, Any]) -> dict[str, str]:
    lua = lua51.LuaRuntime(register_eval=False, register_builtins=False, unpack_returned_tuples=True)
    libraries = list(lua.eval("package.loaded"))
    for name in set(libraries) - LIBRARIES:
        lua.globals()[name] = None
    lua.globals()["obj"] = lua.table_from(obj, recursive=True)
    return dict(lua.execute(SCRIPT))


@pytest.mark.parametrize("case", TESTS, ids=lambda case: Path(case["inputPath"]).stem)
def test_health_of_each_recorded_status(case: dict[str, Any]) -> None:
    recorded = yaml.safe_load((CHECK / case["inputPath"]).read_text())
    assert health(recorded) == case["healthStatus"]


def test_every_health_is_one_that_argo_cd_knows() -> None:
    found = {case["healthStatus"]["status"] for case in TESTS}
    assert found == {"Healthy", "Progressing", "Degraded", "Suspended"}
    assert found < HEALTH


@pytest.mark.parametrize("status", [None, {}, {"conditions": []}, {"observedGeneration": -1}], ids=str)
def test_without_conditions_it_waits(status: dict[str, Any] | None) -> None:
    obj: dict[str, Any] = {"metadata": {"name": "smol", "generation": 1}, "spec": {}}
    found = health(obj if status is None else {**obj, "status": status})
    assert found["status"] == "Progressing"


def test_conditions_of_others_are_nothing_to_it() -> None:
    recorded = yaml.safe_load((CHECK / "testdata/ready.yaml").read_text())
    theirs = {"type": "Backed.Up", "status": "False", "reason": "Stalled", "message": "no"}
    recorded["status"]["conditions"].append(theirs)
    assert health(recorded)["status"] == "Healthy"
