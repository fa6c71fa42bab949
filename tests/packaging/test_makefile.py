"""The Makefile's virtual environment, with a Python that does nothing but note what it is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# `python -m venv` without ensurepip fails when the environment's Python is already in place.
PYTHON = """#!/bin/sh
echo "$*" >> "$NOTES"
case "$*" in
  "-m venv"*)
    mkdir -p .venv/bin && cp "$0" .venv/bin/python
    if [ -e "$HAS_ENSUREPIP" ]; then touch .venv/pip; else exit 1; fi ;;
  "-m pip --version") [ -e .venv/pip ] ;;
  "-m pip install"*) printf '#!/bin/sh\n' > .venv/bin/uv && chmod +x .venv/bin/uv ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile, what it looks at, and the Python above."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "requirements").mkdir()
    for name in ("dev.txt", "torch.in", "model.txt", "bootstrap.txt"):
        (tmp_path / "requirements" / name).touch()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "hatch_build.py").touch()
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    return tmp_path


def make(project: Path, target: str) -> tuple[int, list[str]]:
    """Run make; return its exit status and what Python was asked for."""
    notes = project / "notes"
    notes.write_text("")
    env = {**os.environ, "NOTES": str(notes), "HAS_ENSUREPIP": str(project / "has-ensurepip")}
    # A make that runs these tests must not hand its own flags and job slots down.
    env = {name: value for name, value in env.items() if not name.startswith("MAKE")}
    command = ["make", f"PYTHON={project}/python3", target]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    return done.returncode, notes.read_text().splitlines()


def test_environment_without_pip_is_made_anew_once_ensurepip_is_there(project: Path) -> None:
    status, _ = make(project, "install")
    assert status != 0
    assert (project / ".venv" / "bin" / "python").exists()
    (project / "has-ensurepip").touch()
    status, asked = make(project, "install")
    assert status == 0
    assert "-m venv --clear .venv" in asked
    assert (project / ".venv" / ".installed").exists()


def test_whole_environment_is_left_alone(project: Path) -> None:
    (project / "has-ensurepip").touch()
    assert make(project, "install")[0] == 0
    (project / "pyproject.toml").touch()
    (project / ".venv" / ".installed").unlink()
    status, asked = make(project, "install")
    assert status == 0
    assert not any("venv --clear" in line for line in asked)


@pytest.mark.parametrize("target", ["demo", "test", "tools"])
def test_what_is_missing_is_said_before_anything_is_installed(project: Path, target: str) -> None:
    _, asked = make(project, target)
    assert asked[0] == "e2e/preflight.py"
    assert "-m venv --clear .venv" in asked[1:]


def test_tests_of_a_gpu_look_for_one_first(project: Path) -> None:
    (project / "has-ensurepip").touch()
    status, asked = make(project, "test-gpu")
    assert status != 0  # the environment above has no pytest
    assert asked[-1].startswith("-c import torch; torch.cuda.is_available() or exit(")


def test_all_tests_of_a_gpu_are_where_make_looks_for_them() -> None:
    (line,) = [
        line
        for line in (REPOSITORY / "Makefile").read_text().splitlines()
        if "pytest" in line and "-m gpu" in line
    ]
    folder = line.split("pytest ")[1].split()[0]
    marked = [
        path.relative_to(REPOSITORY)
        for parent in ("tests", "e2e")
        for path in (REPOSITORY / parent).rglob("test_*.py")
        if "pytest.mark" + ".gpu" in path.read_text()
    ]
    assert marked
    assert all(path.is_relative_to(folder) for path in marked)
