"""The Makefile's virtual environment, with a Python that does nothing but note what it is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from endless import ENDLESS, noted, wait_for_end

import kind_check

REPOSITORY = Path(__file__).resolve().parents[2]
# `python -m venv` without ensurepip fails when the environment's Python is already in place.
PYTHON = """#!/bin/sh
case "$*" in
  "e2e/kind_check.py --can") echo "$*" >> "$NOTES"; exit "${CAN_KIND:-0}" ;;
  "-c import sys; sys.exit("*) [ ! -e .venv/old ]; exit ;;
esac
echo "$*" >> "$NOTES"
case "$*" in
  "e2e/step.py"*) shift 2; exec "$@" ;;
  "-m venv"*)
    mkdir -p .venv/bin && cp "$0" .venv/bin/python
    if [ -e "$HAS_ENSUREPIP" ]; then touch .venv/pip; else exit 1; fi ;;
  "-m pip --version") [ -e .venv/pip ] ;;
  "-m pip install"*) printf '#!/bin/sh\n' > .venv/bin/uv && chmod +x .venv/bin/uv ;;
esac
"""


@pytest.fixture(params=["plain", "with a blank"])
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder with the Makefile, what it looks at, and the Python above."""
    folder = tmp_path / str(request.param)
    (folder / "requirements").mkdir(parents=True)
    shutil.copy(REPOSITORY / "Makefile", folder)
    for name in ("dev.txt", "demo.txt", "torch.in", "model.txt", "bootstrap.txt"):
        (folder / "requirements" / name).touch()
    (folder / "pyproject.toml").touch()
    (folder / "hatch_build.py").touch()
    (folder / "python3").write_text(PYTHON)
    (folder / "python3").chmod(0o755)
    return folder


def make(project: Path, target: str, *settings: str) -> tuple[int, list[str]]:
    """Run make; return its exit status and what Python was asked for."""
    notes = project / "notes"
    notes.write_text("")
    env = {**os.environ, "NOTES": str(notes), "HAS_ENSUREPIP": str(project / "has-ensurepip")}
    # A make that runs these tests must not hand its own flags and job slots down.
    env = {name: value for name, value in env.items() if not name.startswith("MAKE")}
    command = ["make", "PYTHON=./python3", *settings, target]
    done = subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, notes.read_text().splitlines()


def test_environment_without_pip_is_made_anew_once_ensurepip_is_there(project: Path) -> None:
    status, _ = make(project, "install")
    assert status != 0
    assert (project / ".venv" / "bin" / "python").exists()
    (project / "has-ensurepip").touch()
    status, asked = make(project, "install")
    assert status == 0
    assert "-m venv .venv" in asked
    assert (project / ".venv" / ".installed").exists()


def test_whole_environment_is_left_alone(project: Path) -> None:
    (project / "has-ensurepip").touch()
    assert make(project, "install")[0] == 0
    (project / "pyproject.toml").touch()
    (project / ".venv" / ".installed").unlink()
    status, asked = make(project, "install")
    assert status == 0
    assert not any("-m venv" in line for line in asked)


def test_environment_that_was_cut_off_half_way_is_made_anew(project: Path) -> None:
    (project / "has-ensurepip").touch()
    uv = project / ".venv" / "bin" / "uv"
    assert make(project, "install")[0] == 0
    (project / ".venv" / ".installed").unlink()
    uv.write_text("#!/bin/sh\nkill -KILL $PPID\n")  # ends the shell that make runs, as a power cut would
    assert make(project, "install")[0] != 0
    assert (project / ".venv-half").exists()
    status, asked = make(project, "install")
    assert status == 0
    assert "-m venv .venv" in asked
    assert not (project / ".venv-half").exists()


def test_a_make_that_is_told_to_end_leaves_no_installation_behind(project: Path) -> None:
    (project / "has-ensurepip").touch()
    assert make(project, "install")[0] == 0
    (project / ".venv" / ".installed").unlink()
    pid = project / "pid"
    (project / ".venv" / "bin" / "uv").write_text(f"#!/bin/sh\n{ENDLESS.format(pid=pid)}\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    with subprocess.Popen(
        ["make", "PYTHON=./python3", "install"], cwd=project, env={**env, "NOTES": "notes"}
    ) as process:
        child = noted(pid)
        process.terminate()
        assert process.wait(timeout=60) != 0
    wait_for_end(child)
    assert (project / ".venv-half").exists()


def test_a_make_within_a_make_is_known_by_what_was_typed(project: Path) -> None:
    """The next step of a failure names the command, and the ledger has the steps of both."""
    with (project / "Makefile").open("a") as file:
        file.write(
            "outer:\n\t@echo $$STOKER_COMMAND $$STOKER_STARTED\n\t@$(MAKE) --no-print-directory inner\n"
        )
        file.write("inner:\n\t@echo $$STOKER_COMMAND $$STOKER_STARTED\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", "outer", "A=b"]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith("make outer A=b ")


def test_a_second_make_waits_for_the_first(project: Path) -> None:
    (project / "has-ensurepip").touch()
    # Nobody's child: one of ours would stay visible after its end until we asked for its status.
    command = ["sh", "-c", "sleep 3 > /dev/null & echo $!"]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (project / ".venv-half").write_text(first)
    status, asked = make(project, "install")
    with pytest.raises(ProcessLookupError):
        os.kill(int(first), 0)
    assert status == 0
    assert "-m venv .venv" in asked


@pytest.mark.parametrize("reason", ["moved", "old Python", "no Python"])
def test_environment_of_another_place_or_python_is_made_anew(project: Path, reason: str) -> None:
    (project / "has-ensurepip").touch()
    assert make(project, "install")[0] == 0
    if reason == "moved":
        (project / ".venv" / ".demo").write_text("/somewhere/else\n")
    elif reason == "old Python":
        (project / ".venv" / "old").touch()
    else:
        (project / ".venv" / "bin" / "python").unlink()
        (project / ".venv" / "bin" / "python").symlink_to("/nonexistent/python3")
    status, asked = make(project, "install")
    assert status == 0
    assert "-m venv .venv" in asked
    assert make(project, "install") == (0, [])


@pytest.mark.parametrize("target", ["help", "preflight", "install", "demo", "test-kind"])
def test_a_python_that_is_not_there_is_named(project: Path, target: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "PYTHON=python3.99", target]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Next: there is no python3.99: name another Python" in done.stdout


def test_a_cluster_is_taken_down_with_the_environment_that_is_there(project: Path) -> None:
    """After a `git pull`, too, which makes it older than its sources."""
    (project / "has-ensurepip").touch()
    assert make(project, "install")[0] == 0
    os.utime(project / ".venv" / ".demo", (0, 0))
    assert make(project, "demo-down") == (0, ["e2e/demo.py down"])
    (project / ".venv" / ".demo").unlink()
    assert make(project, "demo-down")[1][0] == "e2e/preflight.py --python-only"


def test_wheels_are_found_in_a_folder_with_blanks(project: Path) -> None:
    (project / "has-ensurepip").touch()
    wheels = project / "some wheels"
    wheels.mkdir()
    (wheels / "torch-2.0-py3-none-any.whl").touch()
    status, asked = make(project, "install", f"STOKER_WHEELS={wheels}")
    assert status == 0
    (torch,) = [line for line in asked if line.startswith("e2e/step.py install torch")]
    assert f"--no-index --find-links {wheels} " in torch


@pytest.mark.parametrize("target", ["demo", "test", "tools"])
def test_what_is_missing_is_said_before_anything_is_installed(project: Path, target: str) -> None:
    _, asked = make(project, target)
    assert asked[0].startswith("e2e/preflight.py")
    assert "--python-only" not in asked[0]
    assert "-m venv .venv" in asked[1:]


def test_a_machine_without_kind_gets_no_environment_for_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "has-ensurepip").touch()
    monkeypatch.setenv("CAN_KIND", str(kind_check.CANNOT))
    assert make(project, "test-kind") == (0, ["e2e/kind_check.py --can"])
    monkeypatch.setenv("CAN_KIND", "1")  # as when it was interrupted
    status, asked = make(project, "test-kind")
    assert status != 0
    assert asked == ["e2e/kind_check.py --can"]


def test_kind_is_tested_once_everything_is_there(project: Path) -> None:
    (project / "has-ensurepip").touch()
    status, asked = make(project, "test-kind", "KIND_TESTS=a b")
    assert status == 0
    assert asked[:2] == ["e2e/kind_check.py --can", "e2e/preflight.py --for test-kind"]
    assert "-m venv .venv" in asked
    assert asked[-1] == "e2e/kind_check.py a b"


def test_git_answers_root_in_a_checkout_of_somebody_else(project: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to others")
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    for path in (project, *project.rglob("*")):
        os.chown(path, 12345, 12345)
    (project / "Makefile").write_text(
        (project / "Makefile").read_text() + "\nlisted:\n\tgit ls-files --others\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "GIT_"))}

    def printed(*command: str) -> str:
        done = subprocess.run(command, cwd=project, env=clean, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert "dubious ownership" in printed("git", "ls-files", "--others")
    assert "pyproject.toml" in printed("make", "listed")


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
