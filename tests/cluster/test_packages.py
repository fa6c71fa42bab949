"""Package installations wait for the locks of apt and dpkg: a real apt-get, and a process that holds them."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import aptlock, failures, packages
from cluster.api import ClusterError
from cluster.aptlock import Holder, Waiting

QUICK = Waiting(limit_s=60, say_every_s=0.2, look_every_s=0.05)
IMPATIENT = Waiting(limit_s=0.3, say_every_s=0.1, look_every_s=0.05)
HOLD = """
import fcntl, sys
with open(sys.argv[1], "a+") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""

has_apt = pytest.mark.skipif(packages.find("apt-get") is None, reason="needs apt-get")


@contextmanager
def held(lock: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    """A process that holds a lock the way apt does; yields its id and what makes it let go."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process.pid, process.stdin.close
        finally:
            if not process.stdin.closed:
                process.stdin.close()


@pytest.fixture
def apt(tmp_path: Path) -> list[str]:
    """Options that give apt folders of its own, without sources: it locks, and reaches for no network."""
    for folder in ("state/lists/partial", "dpkg", "cache/archives/partial", "parts"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dpkg" / "status").touch()
    settings = {
        "Dir::State": tmp_path / "state",
        "Dir::State::status": tmp_path / "dpkg" / "status",
        "Dir::Cache": tmp_path / "cache",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": tmp_path / "parts",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


LOCKS = [
    pytest.param("state/lists/lock", ["update"], id="lists"),
    pytest.param("dpkg/lock-frontend", ["install", "--yes"], id="frontend"),
    pytest.param("dpkg/lock", ["install", "--yes"], id="database"),
]


@has_apt
@pytest.mark.parametrize(("lock", "command"), LOCKS)
def test_apt_is_waited_for_aloud(
    tmp_path: Path, apt: list[str], lock: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = threading.Event()
    release_at = itertools.count(1)
    with held(tmp_path / lock) as (pid, release):

        class Told(aptlock.Wait):
            def _check(self, lock: Path, who: str, pid: int) -> None:
                super()._check(lock, who, pid)
                if next(release_at) == 10:  # half a second, in which it speaks twice or more
                    said.set()
                    release()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(aptlock, "Wait", Told)
            packages.apt_get(*apt, *command, waiting=QUICK)
    assert said.is_set()
    lines = [line for line in capsys.readouterr().err.splitlines() if "waiting for" in line]
    assert len(lines) >= 2
    assert "waiting for python" in lines[0]
    assert f" (process {pid}), which holds {tmp_path / lock};" in lines[0]


@has_apt
@pytest.mark.parametrize(("lock", "command"), LOCKS)
def test_a_lock_that_is_held_for_too_long_is_told_with_its_holder(
    tmp_path: Path, apt: list[str], lock: str, command: list[str]
) -> None:
    with held(tmp_path / lock) as (pid, _), pytest.raises(ClusterError) as caught:
        packages.apt_get(*apt, *command, waiting=IMPATIENT)
    assert re.search(
        rf"python\S* \(process {pid}\) holds {re.escape(str(tmp_path / lock))}", str(caught.value)
    )
    assert f"`ps -fp {pid}`" in (caught.value.next_step or "")
    assert "then `{again}`" in (caught.value.next_step or "")


@has_apt
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the locks of the machine do")
def test_the_machines_own_locks_are_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a source and without cleaning up, so nothing changes on the machine."""
    update = [
        "update",
        "--quiet",
        "-o",
        "Dir::Etc::sourcelist=/dev/null",
        "-o",
        "Dir::Etc::sourceparts=/dev/null",
    ]
    update += ["-o", "APT::Get::List-Cleanup=0"]
    for lock, command in (
        (Path("/var/lib/apt/lists/lock"), update),
        (aptlock.FRONTEND_LOCK, ["install", "--yes", "--no-upgrade", "--no-download", "dpkg"]),
    ):
        if aptlock.holder(lock) is not None:
            pytest.skip(f"{lock} is in use by {aptlock.holder(lock)}")
        with held(lock) as (pid, release):
            timer = threading.Timer(0.5, release)
            timer.start()
            packages.apt_get(*command, waiting=QUICK)
            timer.join()
        assert f"(process {pid}), which holds {lock};" in capsys.readouterr().err


@has_apt
def test_what_is_no_lock_is_an_error_at_once(apt: list[str]) -> None:
    with pytest.raises(ClusterError, match="Unable to locate package no-such-package"):
        packages.apt_get(*apt, "install", "--yes", "no-such-package", waiting=QUICK)


@has_apt
def test_an_interrupted_dpkg_is_told_with_the_command_that_repairs_it(tmp_path: Path, apt: list[str]) -> None:
    (tmp_path / "dpkg" / "updates").mkdir()
    (tmp_path / "dpkg" / "updates" / "0001").write_text("Package: x\n")
    with pytest.raises(ClusterError, match="dpkg was interrupted") as caught:
        packages.apt_get(*apt, "install", "--yes", "no-such-package", waiting=QUICK)
    assert "`dpkg --configure -a`" in failures.next_step(caught.value, "make demo")


@pytest.mark.parametrize(
    ("output", "lock"),
    [
        pytest.param(
            "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 24855 (apt-get)\n"
            "E: Unable to lock directory /var/lib/apt/lists/\n",
            "/var/lib/apt/lists/lock",
            id="apt-2",
        ),
        pytest.param(
            "E: Could not get lock /var/lib/dpkg/lock-frontend - open (11: Resource temporarily unavailable)",
            "/var/lib/dpkg/lock-frontend",
            id="apt-1",
        ),
        pytest.param(
            "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), "
            "is another process using it?",
            "/var/lib/dpkg/lock-frontend",
            id="apt-with-a-timeout",
        ),
        pytest.param(
            "dpkg: error: dpkg frontend lock was locked by another process with pid 7",
            "/var/lib/dpkg/lock-frontend",
            id="dpkg-frontend",
        ),
        pytest.param(
            "dpkg: error: dpkg database lock was locked by another process with pid 7",
            "/var/lib/dpkg/lock",
            id="dpkg-database",
        ),
        pytest.param("E: Unable to locate package foo", None, id="another-reason"),
        pytest.param(
            "E: Could not open lock file /var/lib/dpkg/lock-frontend - open (13: Permission denied)\n"
            "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), are you root?",
            None,
            id="no-permission",
        ),
    ],
)
def test_refusals_are_read(output: str, lock: str | None) -> None:
    assert aptlock.refused(output) == (Path(lock) if lock else None)


def test_a_lock_nobody_holds_or_that_does_not_exist_is_free(tmp_path: Path) -> None:
    assert aptlock.holder(tmp_path / "absent") is None
    (tmp_path / "lock").touch()
    assert aptlock.holder(tmp_path / "lock") is None


def test_a_holder_beyond_the_container_is_named_as_such() -> None:
    assert str(Holder(0, "")) == "a process outside this container"


def test_a_holder_that_comes_and_goes_is_not_waited_for_without_end(tmp_path: Path) -> None:
    seconds = itertools.count(0.0, 100.0)
    wait = aptlock.Wait(Waiting(limit_s=450.0), clock=lambda: next(seconds), sleep=lambda s: None)
    for _ in range(4):
        wait.until_free(tmp_path / "lock")
    with pytest.raises(ClusterError, match="comes and goes holds"):
        wait.until_free(tmp_path / "lock")


def test_what_the_update_said_is_told_when_the_installation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its mirrors `apt-get update` succeeds: what is missing then is not at fault."""

    def apt_get(action: str, *arguments: str) -> str:
        if action == "update":
            return "W: Failed to fetch http://mirror.example/debian/dists  Could not connect to 127.0.0.1:9"
        raise ClusterError("`apt-get install` failed:\nE: Unable to locate package buildah")

    monkeypatch.setattr(packages, "apt_get", apt_get)
    monkeypatch.setattr(packages, "missing", lambda programs: ["buildah"])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ClusterError, match="Failed to fetch") as failure:
        packages.ensure({"buildah": "buildah"})
    assert "package mirrors" in failures.next_step(failure.value, "make demo")
