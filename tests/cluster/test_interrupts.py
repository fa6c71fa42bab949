"""Ctrl-C, a termination and a closed terminal: what was begun is ended, and the last line says what to do."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from endless import ENDLESS, noted, wait_for_end

from cluster import ledger, progress, shell
from cluster.progress import FAILED, STOPPED, Record, step

REPOSITORY = Path(__file__).resolve().parents[2]
E2E = REPOSITORY / "e2e"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def quiet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no make around."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (ledger.STARTED, shell.COMMAND):
        monkeypatch.delenv(name, raising=False)
    record = Record()
    monkeypatch.setattr(progress, "RECORD", record)
    monkeypatch.setattr(ledger, "RECORD", record)


@pytest.fixture(autouse=True)
def at_a_terminal() -> Iterator[None]:
    """Signals do what they do at a terminal, also where these tests are a job that ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hangup)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_is_told_apart_from_failures(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        with step("compile"):
            os.kill(os.getpid(), number)
            signal.pause()

    assert shell.run("make demo", body) == shell.INTERRUPTED
    said = capsys.readouterr().err
    assert "compile  (stopped)" in said
    assert said.splitlines()[-1].startswith("Next: `make demo` goes on where it stopped; `make demo-down`")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_only_the_demo_speaks_of_its_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise KeyboardInterrupt

    assert shell.run("make tools", body) == shell.INTERRUPTED
    assert capsys.readouterr().err.splitlines()[-1] == "Next: `make tools` goes on where it stopped."


def test_a_hangup_that_shall_be_ignored_is(capsys: pytest.CaptureFixture[str]) -> None:
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert shell.run("make demo", lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0


def test_what_a_thread_does_is_interrupted_and_not_failed() -> None:
    """Ctrl-C reaches the programs that threads started as soon as it reaches us."""
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        with contextlib.suppress(ValueError), step("in a thread"):
            begun.set()
            ended.wait(20)
            raise ValueError("its program was ended")

    def body() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        try:
            begun.wait(20)
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
        finally:
            ended.set()
            thread.join()

    assert shell.run("make demo", body) == shell.INTERRUPTED
    (path,) = ledger.folder().glob("*.json")
    outcomes = {entry["title"]: entry["outcome"] for entry in json.loads(path.read_text())["steps"]}
    assert outcomes["in a thread"] == STOPPED


def test_what_failed_before_the_interrupt_has_failed() -> None:
    record = Record()
    for title, end_s in (("before", 90.0), ("a moment before", 99.9), ("after", 101.0)):
        record.add(progress.Entry(title, end_s - 5, 5.0, FAILED))
    assert [entry.outcome for entry in record.entries()] == [FAILED, FAILED, FAILED]
    record.interrupt(100.0)
    assert [entry.outcome for entry in record.entries()] == [FAILED, STOPPED, STOPPED]


FRAME = """
import subprocess, sys
sys.path.insert(0, {e2e!r})
from cluster import shell
from cluster.progress import step
def body():
    with step("wait"), subprocess.Popen(["sh", "-c", {child!r}]) as child:
        child.wait()
sys.exit(shell.run("make demo", body))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_termination_reaches_what_was_started(number: signal.Signals, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = FRAME.format(e2e=str(E2E), child=ENDLESS.format(pid=pid))
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        child = noted(pid)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == shell.INTERRUPTED
    assert said.splitlines()[-1].startswith("Next: ")
    wait_for_end(child)


def test_a_closed_terminal_ends_everything_though_nobody_reads(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = FRAME.format(e2e=str(E2E), child=ENDLESS.format(pid=pid))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(theirs)
        child = noted(pid)
        os.close(ours)
        process.wait(timeout=60)
    wait_for_end(child)
    (path,) = ledger.folder().glob("*.json")
    assert json.loads(path.read_text())["outcome"] == STOPPED


# The steps of the Makefile.


def start_step(folder: Path, *command: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-S", str(E2E / "step.py"), "install it", *command]
    environment = {**os.environ, shell.COMMAND: "make demo"}
    return subprocess.Popen(line, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_step_that_is_interrupted_leaves_nobody_behind(number: signal.Signals, tmp_path: Path) -> None:
    """As `python -m venv`, whose child installs pip."""
    pid = tmp_path / "pid"
    with start_step(tmp_path, "sh", "-c", f'sh -c "{ENDLESS.format(pid=pid)}"; echo over') as process:
        grandchild = noted(pid)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == shell.INTERRUPTED
    assert "✗ install it after" in said
    assert "over" not in said
    assert said.splitlines()[-1] == (
        "Next: `make demo` makes the environment anew from what was downloaded so far."
    )
    wait_for_end(grandchild)


def test_a_step_ends_what_does_not_listen(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    deaf = f"trap '' TERM; {ENDLESS.format(pid=pid)}"
    with start_step(tmp_path, "sh", "-c", deaf) as process:
        child = noted(pid)
        process.terminate()
        assert process.wait(timeout=60) == shell.INTERRUPTED
    wait_for_end(child)


def test_what_a_step_unpacks_goes_with_it(tmp_path: Path) -> None:
    """ensurepip and pip unpack in the folder for temporary files, and do not clear it when they are ended."""
    unpack = "import os, tempfile, time; open(tempfile.mkdtemp() + '/wheel', 'w').close(); "
    note = "open('pid.new', 'w').write(str(os.getpid())); os.rename('pid.new', 'pid'); time.sleep(600)"
    with start_step(tmp_path, sys.executable, "-S", "-c", unpack + note) as process:
        noted(tmp_path / "pid")
        (unpacked,) = tmp_path.glob("**/wheel")
        assert unpacked.is_relative_to(tmp_path / ".venv")
        process.terminate()
        assert process.wait(timeout=60) == shell.INTERRUPTED
    assert not unpacked.exists()
    assert list((tmp_path / ".venv").iterdir()) == []


def test_a_step_that_fails_does_not_promise_to_go_on(tmp_path: Path) -> None:
    for command in (("false",), ("sh", "-c", "echo no space: No space left on device; exit 1")):
        with start_step(tmp_path, *command) as process:
            _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "goes on where it stopped" not in said
        assert "makes the environment anew from what was downloaded so far" in said.splitlines()[-1]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("arguments", ["preflight.py --for test", "kind_check.py --can"])
def test_a_look_at_the_machine_that_is_interrupted_leaves_nobody_behind(
    arguments: str, number: signal.Signals, tmp_path: Path
) -> None:
    """Docker's client waits for an engine that does not answer."""
    pid, docker = tmp_path / "pid", tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\n{ENDLESS.format(pid=pid)}\n")
    docker.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", shell.COMMAND: "make test"}
    script, *options = arguments.split()
    line = [sys.executable, "-S", str(E2E / script), *options]
    with subprocess.Popen(
        line, env=environment, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        child = noted(pid)
        if number == signal.SIGINT:  # as a terminal does
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == shell.INTERRUPTED
    assert said.splitlines()[-1] == "Next: `make test` begins again."
    wait_for_end(child)
