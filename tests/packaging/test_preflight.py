"""What a machine lacks for each command, and the one table of needs that help, preflight and README share."""

from __future__ import annotations

import dataclasses
import getpass
import re
import subprocess
import sys
from pathlib import Path

import pytest

import disks
import needs
import preflight
from disks import CACHE, DOCKER, GO, SOURCES, Disk
from needs import ANY, KIND, NATIVE, NEEDS, Need
from preflight import Machine

REPOSITORY = Path(__file__).resolve().parents[2]
HERE, THERE = Path("/x"), Path("/y")
ROOMY = Machine(
    lacks={KIND: None, NATIVE: None, needs.ENGINE: None},
    disks={HERE: Disk(100.0, frozenset({CACHE}))},
    memory_gib=32.0,
    is_built=False,
    is_cuda=False,
)


def at(folder: Path, free_gib: float, *holds: str) -> dict[Path, Disk]:
    return {folder: Disk(free_gib, frozenset(holds))}


def changed(**fields: object) -> Machine:
    return dataclasses.replace(ROOMY, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "has_ensurepip", "has_venv", "wanted"),
    [
        pytest.param((3, 11, 2), True, False, None, id="right"),
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
    for lacks in ({KIND: None, NATIVE: "no root"}, {KIND: "no docker", NATIVE: None}):
        assert preflight.problems_for("demo", changed(lacks=lacks)) == []
    (both,) = preflight.problems_for("demo", changed(lacks={KIND: "no docker", NATIVE: "no root"}))
    assert "no docker" in both
    assert "no root" in both


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        pytest.param(ROOMY, KIND, id="kind-first"),
        pytest.param(changed(lacks={KIND: "no docker", NATIVE: None}), NATIVE, id="else-native"),
    ],
)
def test_the_demo_is_judged_by_the_cluster_that_it_would_choose(machine: Machine, wanted: str) -> None:
    ((need, lacking),) = preflight.choices("demo", machine)
    assert need.cluster == wanted
    assert lacking == []


def test_a_full_disk_keeps_kind_from_being_replaced_by_native() -> None:
    (problem,) = preflight.problems_for("demo", changed(disks=at(HERE, 1.0, CACHE)))
    assert problem.startswith("disk space: 1.0 GiB are free at /x")


NEED = Need("make it", ANY, cold_min=5, warm_s=30, disk_gib=10, memory_gib=6)


@pytest.mark.parametrize(
    ("machine", "needed"),
    [
        pytest.param(ROOMY, 10, id="first"),
        pytest.param(changed(is_cuda=True), 10 + needs.CUDA_GIB, id="first-with-cuda"),
        pytest.param(changed(is_built=True), 10, id="once-built-for-the-demo"),
        pytest.param(changed(is_built=True, is_installed=True, is_cuda=True), needs.AGAIN_GIB, id="again"),
    ],
)
def test_disk_space_depends_on_what_is_still_to_do(machine: Machine, needed: int) -> None:
    enough = dataclasses.replace(machine, disks=at(HERE, needed, CACHE, SOURCES))
    assert preflight.disk_problems(NEED, enough) == []
    less = dataclasses.replace(machine, disks=at(HERE, needed - 0.1, CACHE, SOURCES))
    (problem,) = preflight.disk_problems(NEED, less)
    assert f"{needed - 0.1:.1f} GiB are free at /x, {needed} are needed" in problem
    assert ("CPU build" in problem) is (machine.is_cuda and not machine.is_installed)


def test_the_disk_of_the_sources_alone_has_the_environment_only() -> None:
    cache = at(HERE, 11.0, CACHE)
    assert preflight.disk_problems(NEED, changed(disks={**at(THERE, 6.0, SOURCES), **cache})) == []
    (problem,) = preflight.disk_problems(NEED, changed(disks={**at(THERE, 4.0, SOURCES), **cache}))
    assert f"{needs.VENV_GIB} are needed" in problem


def test_the_disk_of_gos_caches_counts_where_something_is_compiled() -> None:
    full = {**at(HERE, 100.0, CACHE, SOURCES), **at(THERE, 1.0, GO)}
    assert preflight.disk_problems(NEED, changed(disks=full)) == []
    machine = changed(disks=full, to_compile=frozenset({ANY}))
    (problem,) = preflight.disk_problems(NEED, machine)
    assert problem == f"disk space: 1.0 GiB are free at {THERE}, {needs.GO_GIB} are needed"
    assert preflight.disk_problems(NEED._replace(cluster=needs.NONE), machine) == []


def test_the_disk_of_dockers_data_counts_where_a_cluster_runs() -> None:
    full = changed(disks={**at(HERE, 100.0, CACHE, SOURCES), **at(THERE, 1.0, DOCKER)})
    (problem,) = preflight.disk_problems(NEED._replace(disk_gib=20), full)
    assert problem.endswith(f"at {THERE}, {20 - needs.VENV_GIB} are needed")
    (again,) = preflight.disk_problems(NEED, dataclasses.replace(full, is_built=True, is_installed=True))
    assert again.endswith(f"at {THERE}, {needs.AGAIN_GIB} are needed")
    assert preflight.disk_problems(NEED._replace(cluster=needs.NONE), full) == []


def test_no_disk_needs_more_than_all_of_it() -> None:
    machine = changed(disks=at(HERE, 10.0, CACHE, SOURCES, GO, DOCKER), to_compile=frozenset({ANY}))
    assert preflight.disk_problems(NEED, machine) == []


def test_folders_are_told_by_their_disks(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    places = {GO: [memory / "not" / "yet", tmp_path], SOURCES: [tmp_path], CACHE: [tmp_path / "cache"]}
    found = disks.group(places)
    assert {folder: disk.holds for folder, disk in found.items()} == {
        memory: {GO},
        tmp_path: {GO, SOURCES, CACHE},
    }
    assert all(disk.free_gib > 0 for disk in found.values())


def test_go_and_docker_are_asked_for_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    for name, answer in (("go", f"{tmp_path}/build\n{tmp_path}/mod"), ("docker", str(tmp_path))):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (tmp_path / name).chmod(0o755)
    assert disks.go_folders() == [tmp_path / "build", tmp_path / "mod"]
    assert disks.docker_folders() == [tmp_path]
    (tmp_path / "docker").write_text("#!/bin/sh\necho /of/another/machine\n")
    assert disks.docker_folders() == []
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    assert disks.docker_folders() == []


def test_what_is_there_of_a_demo_is_no_environment_for_tests() -> None:
    machine = changed(is_built=True)
    assert "the first time" not in preflight.verdict("demo", machine)
    for command in ("install", "test", "test-long", "test-fast"):
        assert "the first time" in preflight.verdict(command, machine)
    assert "the first time" not in preflight.verdict("install", changed(is_installed=True))


def test_a_back_end_that_is_asked_for_rules_the_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster import prerequisites

    for backend, ruled_out in {"": [], "auto": [], "kind": [NATIVE], "native": [KIND]}.items():
        monkeypatch.setenv("STOKER_CLUSTER_BACKEND", backend)
        assert list(prerequisites.ruled_out()) == ruled_out
    monkeypatch.setenv("STOKER_CLUSTER_BACKEND", "foo")
    found = prerequisites.ruled_out()
    assert list(found) == [KIND, NATIVE]
    assert "'foo' is none of auto, kind, native" in found[KIND]


def test_kind_alone_is_judged_by_the_engine_that_could_be_started() -> None:
    lacks = {KIND: "no engine answers", NATIVE: "no root", needs.ENGINE: None}
    assert preflight.problems_for("test-kind", changed(lacks=lacks)) == []
    assert preflight.problems_for("test", changed(lacks=lacks)) != []


def test_what_is_missing_can_be_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "look", lambda: changed(memory_gib=0.1))
    assert preflight.main(["--for", "demo"]) == 1
    assert "STOKER_PREFLIGHT=warn" in capsys.readouterr().err
    monkeypatch.setenv("STOKER_PREFLIGHT", "warn")
    assert preflight.main(["--for", "demo"]) == 0
    assert "memory: 0.1 GiB are available" in capsys.readouterr().err


def test_memory_and_folders_of_others_are_named() -> None:
    machine = changed(memory_gib=5.94, unwritable={Path("/x/.venv"): "do this"})
    assert preflight.problems_of(NEED, machine) == [
        "memory: 5.9 GiB are available, 6 are needed",
        "write access to /x/.venv: do this",
    ]


def test_a_verdict_says_how_long_or_why_not() -> None:
    lines = preflight.report(changed(is_built=True, lacks={**ROOMY.lacks, KIND: "no docker"})).splitlines()
    assert "  kind: no docker" in lines
    assert "  native: can run" in lines
    verdicts = {line.split("  ")[1]: line for line in lines if line.startswith("  make ")}
    assert set(verdicts) == {need.command for need in NEEDS}
    assert "yes, about " in verdicts["make demo"]
    machine = changed(memory_gib=0.1)
    assert "no: memory: 0.1 GiB are available" in preflight.report(machine)
    assert "the first time, then" in preflight.verdict("demo", ROOMY)


def test_folders_of_others_come_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    venv, cache = tmp_path / ".venv", tmp_path / "home" / ".cache"
    venv.mkdir()
    monkeypatch.setattr(preflight, "REPOSITORY", tmp_path)
    monkeypatch.setattr(preflight, "VENV", venv)
    assert preflight.unwritable(cache) == {}
    monkeypatch.setattr("os.access", lambda path, mode: path == venv)
    found = preflight.unwritable(cache)
    assert list(found) == [tmp_path, cache]
    assert f"chown -R {getpass.getuser()} '{tmp_path}'" in found[tmp_path]
    assert "XDG_CACHE_HOME" in found[cache]


def test_a_row_of_the_table_has_the_first_clause_only() -> None:
    both = preflight.cluster_problem(ANY, {KIND: "no docker", NATIVE: "no root"})
    assert preflight.short(both or "") == "a way to run Kubernetes"
    assert preflight.short("disk: 1 GiB. 20 less with") == "disk: 1 GiB"


def test_memory_of_this_machine_is_read() -> None:
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    swap = re.search(r"SwapTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert total is not None
    assert swap is not None
    assert 0 < preflight.available_gib() < (int(total[1]) + int(swap[1])) / 2**20


@pytest.mark.parametrize("arguments", [[], ["--for", "demo"], ["--for", "test"]])
def test_preflight_needs_no_package(arguments: list[str]) -> None:
    """-S leaves site-packages out: what it says of this machine does not matter, that it can say it does."""
    command = [sys.executable, "-S", str(Path(preflight.__file__)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        assert done.stderr.startswith("This machine lacks:"), done.stderr
        assert done.stderr.splitlines()[-1].startswith("Next: ")


def test_every_command_of_the_table_is_a_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert {need.command.removeprefix("make ") for need in NEEDS} <= targets


def test_make_help_prints_the_table() -> None:
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert needs.text() in done.stdout
    assert "minutes" not in done.stdout.replace(needs.text(), "")


def test_readme_has_the_table() -> None:
    """Print it with `python3 e2e/needs.py --markdown`."""
    assert needs.markdown() in (REPOSITORY / "README.md").read_text()


def test_no_page_tells_another_time_of_the_first_run() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "docs/e2e-cluster.md"):
        text = (REPOSITORY / page).read_text().replace(needs.markdown(), "")
        assert re.findall(r"(?:first|once|takes)[^.|]* \d+ min", text) == [], page
