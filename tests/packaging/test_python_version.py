"""What runs before there is an environment, on a Python that is too old for it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import needs
import python_version

REPOSITORY = Path(__file__).resolve().parents[2]
E2E = REPOSITORY / "e2e"
OLDEST = (3, 6)
# Guarded scripts end at the first import; the other two are for any Python.
GUARDED = ("preflight.py", "step.py", "kind_check.py")
FOR_ANY = ("needs.py", "python_version.py")
# Runs a script as an older Python would, without the modules that came after 3.6.
AS_OLDER = """
import runpy, sys
sys.modules["dataclasses"] = None
sys.version_info = ({version}, "final", 0)
sys.argv = [{script!r}, *{arguments!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


def run_as_older(
    version: str, script: str, *arguments: str, command: str = "", path: str = ""
) -> subprocess.CompletedProcess[str]:
    code = AS_OLDER.format(version=version, script=str(E2E / script), arguments=arguments)
    environment = {"PATH": path, "STOKER_COMMAND": command}
    # -S, or site would look at the version first.
    line = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(E2E)!r})\n{code}"]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def scripts_of_the_makefile() -> set[str]:
    """What make runs with the Python of the system."""
    return set(re.findall(r"\$\(PYTHON\) e2e/(\w+\.py)", (REPOSITORY / "Makefile").read_text()))


def test_what_make_runs_first_is_known_here() -> None:
    assert scripts_of_the_makefile() <= {*GUARDED, *FOR_ANY}


@pytest.mark.parametrize("name", [*GUARDED, *FOR_ANY])
def test_an_old_python_can_read_it(name: str) -> None:
    tree = ast.parse((E2E / name).read_text(), feature_version=OLDEST)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in imports if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    if name in GUARDED:
        assert isinstance(imports[0], ast.Import)
        assert [alias.name for alias in imports[0].names] == ["python_version"]
        assert tree.body.index(imports[0]) == 1  # after the docstring


@pytest.mark.parametrize("version", ["3, 6, 9", "3, 8, 10", "3, 10, 12"])
@pytest.mark.parametrize("name", GUARDED)
def test_an_old_python_is_told_with_what_to_do(version: str, name: str, tmp_path: Path) -> None:
    done = run_as_older(version, name, "--python-only", "x", command="make demo", path=str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    first, told, _, last = done.stderr.splitlines()
    assert first == "This machine lacks:"
    assert told == f"  - Python 3.11 or newer: this is {version.replace(', ', '.')}."
    assert last.startswith("Next: install one")
    assert last.endswith("`make demo PYTHON=python3.X`.")


def test_a_newer_python_on_path_is_named(tmp_path: Path) -> None:
    for name in ("python3.9", "python3.12", "python3.13"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    command = "make test PYTHON=/usr/bin/python3.8 KIND_TESTS=x"
    done = run_as_older("3, 8, 10", "preflight.py", command=command, path=str(tmp_path))
    assert done.stderr.splitlines()[-1] == "Next: `make test KIND_TESTS=x PYTHON=python3.12`."


def test_help_needs_no_newer_one() -> None:
    done = run_as_older("3, 6, 9", "needs.py")
    assert (done.returncode, done.stdout) == (0, needs.text() + "\n")


def test_this_one_is_new_enough() -> None:
    assert sys.version_info >= python_version.MIN_PYTHON
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import python_version"],
        cwd=E2E,
        env={**os.environ, "PYTHONPATH": str(E2E)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
