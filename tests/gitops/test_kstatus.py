"""What Flux and others read from recorded statuses: their library itself, in a few lines of Go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from status_situations import SITUATIONS

from cluster.build import GCFLAGS

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = Path(__file__).with_name("kstatus")
RECORDED = REPOSITORY / "contrib/argo-cd/resource_customizations/stoker.dev/ModelDeployment/testdata"
# Like those of the cluster's tools, which compile most of the same packages: Go's cache has them then.
FLAGS = ["-mod=readonly", "-buildvcs=false", "-trimpath", f"-gcflags=all={GCFLAGS}", "-ldflags=-s -w"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go, which kstatus is written in"),
]


def go(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOTOOLCHAIN": "local"}
    return subprocess.run(
        ["go", *arguments], cwd=MODULE, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program: 5 s after `make tools`, else about a minute of two cores."""
    got = go("mod", "download")
    if got.returncode and "SECURITY ERROR" not in got.stderr:
        pytest.skip(f"no Go modules to be had here: {got.stderr.strip().splitlines()[-1]}")
    path = tmp_path_factory.mktemp("kstatus") / "kstatus"
    built = go("build", *FLAGS, f"-o={path}", ".")
    assert built.returncode == 0, got.stderr + built.stderr
    return path


def read(program: Path, objects: list[dict[str, Any]]) -> list[str]:
    lines = "\n".join(map(json.dumps, objects))
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line)["status"] for line in done.stdout.splitlines()]


def test_status_of_each_recorded_object(program: Path) -> None:
    objects = [yaml.safe_load((RECORDED / f"{one.name}.yaml").read_text()) for one in SITUATIONS]
    found = dict(zip((one.name for one in SITUATIONS), read(program, objects), strict=True))
    assert found == {one.name: one.kstatus for one in SITUATIONS}
