"""What a machine lacks for each back end, and what has to be built on it."""

import subprocess
from pathlib import Path

import pytest

from cluster import backends, build, cgroups, host, prerequisites
from cluster.prerequisites import kind_lacks, native_lacks, no_build

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


def test_an_engine_that_does_not_answer_in_time_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(prerequisites, "DOCKER_TIMEOUT_S", 0.2)
    assert kind_lacks() == "no Docker engine answers (`docker info` did not end within 0 s.)"


def test_dockers_reason_is_found_in_what_it_prints() -> None:
    denied = "ERROR: permission denied while trying to connect to the Docker daemon socket"
    said = f"{denied}\nerrors pretty printing info\n"
    assert prerequisites.docker_reason(said).startswith("permission denied while trying")
    assert "usermod -aG docker USER" in prerequisites.docker_reason(said)
    assert prerequisites.docker_reason("") == "no reason given"


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


def test_a_go_beside_kind_builds_what_tests_start_without_a_cluster_and_no_more(machine: Machine) -> None:
    machine.go = (1, 26)
    assert backends.needed_stages() == ["integration", "alerts"]


def test_without_kind_all_is_built(machine: Machine) -> None:
    machine.programs.remove("kind")
    assert backends.needed_stages() == ["e2e"]
    machine.go = (1, 26)
    machine.programs.remove("docker")
    assert backends.needed_stages() == ["e2e", "alerts"]


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
