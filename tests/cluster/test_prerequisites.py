"""What a machine lacks for each back end, and what has to be built on it."""

import subprocess
import sys
from pathlib import Path

import pytest

import preflight
from cluster import backends, build, cgroups, host, prerequisites
from cluster.prerequisites import kind_lacks, native_lacks, no_build

E2E = Path(preflight.__file__).parent
PROGRAMS = {"docker", "kind", "kubectl", "helm", "apt-get"}


class Machine:
    """Which programs it has, whether anything has been built, and its Go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs = set(PROGRAMS)
        self.go: tuple[int, int] | None = None
        self.is_built = False
        self.docker_answers = True
        answer = subprocess.CompletedProcess(["docker"], 1, stdout="", stderr="Server:\nCannot connect\n")
        monkeypatch.setattr("shutil.which", self.which)
        monkeypatch.setattr("subprocess.run", lambda *args, **options: answer)
        monkeypatch.setattr(host, "succeeds", lambda command, timeout_s=0: self.docker_answers)
        monkeypatch.setattr(build, "is_built", lambda tools: self.is_built)
        monkeypatch.setattr(build, "go_version", lambda: self.go)
        monkeypatch.setattr("os.geteuid", lambda: 0)
        monkeypatch.setattr(cgroups, "tracking_root", lambda: Path("/"))

    def which(self, name: str, path: str = "") -> str | None:
        return f"/bin/{name}" if name in self.programs else None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_kind_needs_no_compiler_where_its_clients_are_on_path(machine: Machine) -> None:
    assert kind_lacks() is None
    assert backends.needed_stages() == []


def test_docker_without_an_engine_is_no_reason_to_use_kind(machine: Machine) -> None:
    machine.docker_answers = False
    assert kind_lacks() == "no Docker engine answers (Cannot connect)"


@pytest.mark.parametrize("program", ["docker", "kind", "kubectl", "helm"])
def test_what_kind_lacks_is_named(machine: Machine, program: str) -> None:
    machine.programs.remove(program)
    assert f"there is no {program} on PATH" in (kind_lacks() or "")


@pytest.mark.parametrize(("program", "stage"), prerequisites.CLIENTS.items())
def test_clients_of_kind_are_built_where_there_is_a_go(machine: Machine, program: str, stage: str) -> None:
    machine.programs.remove(program)
    machine.go = (1, 27)
    assert kind_lacks() is None
    assert stage in backends.needed_stages()


def test_a_go_beside_kind_builds_the_integration_tests_api_server_and_no_more(machine: Machine) -> None:
    machine.go = (1, 26)
    assert backends.needed_stages() == ["integration"]


def test_without_kind_all_is_built(machine: Machine) -> None:
    machine.programs.remove("kind")
    assert backends.needed_stages() == ["e2e"]


@pytest.mark.parametrize(
    ("go", "problem"),
    [
        pytest.param(None, "no Go 1.26 or newer on PATH", id="none"),
        pytest.param((1, 25), "is 1.25", id="old"),
        pytest.param((1, 26), None, id="right"),
    ],
)
def test_go_is_needed_until_all_is_built(
    machine: Machine, go: tuple[int, int] | None, problem: str | None
) -> None:
    machine.go = go
    for said in (no_build("e2e"), native_lacks()):
        assert said is None if problem is None else problem in (said or "")
    machine.is_built = True
    assert no_build("e2e") is None


@pytest.mark.parametrize(
    ("version", "has_ensurepip", "has_venv", "wanted"),
    [
        pytest.param((3, 11, 2), True, False, None, id="right"),
        pytest.param((3, 10, 12), True, True, "PYTHON=python3.X", id="old"),
        pytest.param((3, 12, 3), False, False, "apt-get install python3.12-venv", id="no-ensurepip"),
        pytest.param((3, 12, 3), False, True, None, id="no-ensurepip-and-no-need"),
    ],
)
def test_python_is_checked_first(
    version: tuple[int, ...], has_ensurepip: bool, has_venv: bool, wanted: str | None
) -> None:
    said = preflight.python_problem(version, has_ensurepip, has_venv)
    assert said is None if wanted is None else wanted in (said or "")


def test_one_way_to_run_a_cluster_is_enough() -> None:
    assert preflight.cluster_problem(None, "no root") is None
    assert preflight.cluster_problem("no docker", None) is None
    both = preflight.cluster_problem("no docker", "no root")
    assert both is not None
    assert "no docker" in both
    assert "no root" in both


@pytest.mark.parametrize(
    ("is_built", "is_cuda", "compiles", "wanted"),
    [
        pytest.param(False, False, False, 10, id="kind"),
        pytest.param(False, False, True, 20, id="native"),
        pytest.param(False, True, True, 40, id="native-with-cuda"),
        pytest.param(True, True, True, 8, id="once-built"),
    ],
)
def test_disk_space_depends_on_what_is_still_to_do(
    is_built: bool, is_cuda: bool, compiles: bool, wanted: int
) -> None:
    assert preflight.needed_gib(is_built=is_built, is_cuda=is_cuda, compiles=compiles) == wanted


def test_a_disk_that_is_too_full_is_named() -> None:
    assert preflight.disk_problem(10.0, 10, Path("/x")) is None
    assert "9.9 GiB are free at /x, 10 are needed" in (preflight.disk_problem(9.9, 10, Path("/x")) or "")


def test_preflight_needs_no_package() -> None:
    """-S leaves site-packages out: what it says of this machine does not matter, that it can say it does."""
    command = [sys.executable, "-S", str(E2E / "preflight.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0 or done.stderr.startswith("This machine lacks:"), done.stderr
