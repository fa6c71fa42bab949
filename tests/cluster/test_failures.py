"""Every failure ends with what to do next: faults are made, and the last line is read."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import build, failures, host, ledger, packages, progress, shell
from cluster.api import ClusterError
from cluster.progress import Record
from cluster.versions import Tool

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quiet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no make around."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (ledger.STARTED, shell.COMMAND):
        monkeypatch.delenv(name, raising=False)
    record = Record()
    monkeypatch.setattr(progress, "RECORD", record)
    monkeypatch.setattr(ledger, "RECORD", record)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB with nothing left on it."""
    folder = tmp_path / "full"
    folder.mkdir()
    if os.geteuid() != 0 or not host.succeeds(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    ):
        pytest.skip("needs root and the right to mount")
    try:
        (folder / "filler").write_bytes(b"x" * 65536)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_by_what_python_and_by_what_programs_say(
    full_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        (full_disk / "more").write_bytes(b"x" * 4096)

    def copy() -> None:
        host.run(["cp", "/etc/passwd", str(full_disk / "more")])

    for body in (write, copy):
        assert shell.run("make demo", body) == 1
        assert last_line(capsys).startswith("Next: free disk space (`df -h`")


def test_a_program_that_is_missing_is_to_be_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shell.run("make demo", lambda: host.run(["no-such-program"])) == 1
    said = capsys.readouterr().err
    assert "no-such-program" in said
    assert said.splitlines()[-1].startswith("Next: install the program that is named")


def test_missing_packages_without_root_come_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert shell.run("make demo", lambda: packages.ensure({"no-such-program": "package-x"})) == 1
    assert last_line(capsys).startswith(
        "Next: as root `apt-get install --yes --no-install-recommends package-x`"
    )


def fake_go(folder: Path, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "go").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "go").chmod(0o755)


TOOL = Tool("thing", Path("/"), "", "v1", {"thing": "."}, ("e2e",), "key")


def test_a_compiler_that_is_killed_wants_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    # A part of it, or the whole.
    for script in ("echo 'k8s.io/x: /usr/lib/go/compile: signal: killed' >&2; exit 1", "kill -KILL $$"):
        fake_go(tmp_path / "bin", f"test $1 = list && exit 0; {script}")
        assert shell.run("make tools", lambda: build.run_compiler([TOOL], tmp_path / "out")) == 1
        assert "GOFLAGS=-p=1 make tools" in last_line(capsys)


@pytest.mark.parametrize("script", ["exit 1", "echo go1.20.1"])
def test_no_go_or_an_old_one_is_to_be_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str
) -> None:
    fake_go(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert shell.run("make tools", lambda: build.ensure("integration")) == 1
    assert last_line(capsys).startswith("Next: put a newer Go on PATH")


def test_what_takes_too_long_can_be_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run("make demo", lambda: host.run(["sleep", "60"], timeout_s=0.05)) == 1
    assert "`make demo` goes on where it stopped" in last_line(capsys)
    assert shell.run("make demo", lambda: subprocess.run(["sleep", "60"], timeout=0.05, check=True)) == 1
    assert "`make demo` goes on where it stopped" in last_line(capsys)


def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert shell.run("make demo", lambda: socket.create_server(("127.0.0.1", port)).close()) == 1
    assert "`ss -ltnp`" in last_line(capsys)


def test_a_defect_shows_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run("make demo", lambda: [][0]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "report it with the lines above" in said.splitlines()[-1]


def test_what_the_raising_place_knows_wins(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise ClusterError("No space left on device", next_step="do that, then `{again}`.")

    assert shell.run("make demo", body) == 1
    assert last_line(capsys) == "Next: do that, then `make demo`."


def test_the_command_that_make_was_given_is_the_one_to_repeat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(shell.COMMAND, "make test PYTHON=python3.12")
    assert shell.run("make tools", lambda: host.run(["false"])) == 1
    assert "`make test PYTHON=python3.12` goes on" in last_line(capsys)


def run_step(*command: str, cache: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-S", str(REPOSITORY / "e2e" / "step.py"), "install it", *command]
    environment = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(cache), "STOKER_COMMAND": "make demo"}
    return subprocess.run(
        line, env={**environment, ledger.STARTED: "1000.5"}, capture_output=True, text=True, check=False
    )


def test_an_installation_without_network_is_told(tmp_path: Path) -> None:
    """The port of the proxy is one that nobody listens on, so nothing leaves the machine."""
    proxies = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    words = [f"{name}={value}" for name, value in proxies.items()]
    pip = [sys.executable, "-m", "pip", "--isolated", "download", "--retries=0", "--no-cache-dir"]
    where = ["--index-url=https://index.invalid/simple", "--dest", str(tmp_path), "no-such-package"]
    uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--no-config", "--no-cache"]
    target = ["--target", str(tmp_path / "uv"), "--index-url=https://index.invalid/simple", "no-such-package"]
    for command in ([*pip, *where], [*uv, *target]):
        done = run_step("env", "UV_HTTP_RETRIES=0", *words, *command, cache=tmp_path)
        assert done.returncode == 1
        assert "✗ install it after" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("Next: see whether this machine reaches"), done.stderr


def test_a_step_leaves_its_seconds_to_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_step("true", cache=tmp_path).returncode == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(ledger.STARTED, "1000.5")
    assert [entry.title for entry in ledger.handed_on()] == ["install it"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        pytest.param(os.strerror(errno.ENOSPC), "disk", id="ENOSPC"),
        pytest.param(os.strerror(errno.ENOMEM), "memory", id="ENOMEM"),
        pytest.param(os.strerror(errno.EADDRINUSE), "port", id="EADDRINUSE"),
        pytest.param(os.strerror(errno.EACCES), "permission", id="EACCES"),
        pytest.param(os.strerror(errno.EOPNOTSUPP), "kernel", id="EOPNOTSUPP"),
        pytest.param(os.strerror(errno.ENETUNREACH), "network", id="ENETUNREACH"),
        pytest.param("`go build` failed: dial tcp: lookup proxy: no such host", "network", id="go-proxy"),
        pytest.param("E: Failed getting release file http://mirror/dists", "network", id="debootstrap"),
        pytest.param("RTNETLINK answers: Operation not supported", "kernel", id="no-veth"),
        pytest.param("Error: Unknown device type.", "kernel", id="no-link-type"),
        pytest.param(
            "permission denied while trying to connect to the Docker daemon socket at unix:///x.sock",
            "docker-permission",
            id="docker-group",
        ),
        pytest.param(
            "Cannot connect to the Docker daemon at unix:///x.sock. Is the docker daemon running?",
            "docker-down",
            id="no-engine",
        ),
        pytest.param("`helm upgrade` failed with -9: ", "memory", id="killed"),
        pytest.param(
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
            "certificates",
            id="private-ca",
        ),
        pytest.param("SSL: CERTIFICATE_VERIFY_FAILED", "certificates", id="pip-private-ca"),
        pytest.param("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "hash", id="pip-hash"),
        pytest.param("something nobody has seen", None, id="unknown"),
    ],
)
def test_kinds_are_known_by_what_programs_print(text: str, kind: str | None) -> None:
    assert failures.kind_of(text) == kind
    assert "`make demo`" in failures.advice(text, "make demo") or kind == "memory"


@pytest.mark.parametrize(
    ("arguments", "again"),
    [
        pytest.param(["e2e/demo.py", "up"], "make demo", id="demo"),
        pytest.param(["e2e/cluster", "build-tools"], "make tools", id="tools"),
        pytest.param(
            ["e2e/cluster", "--name", "failing", "up"], "python e2e/cluster --name failing up", id="cluster"
        ),
    ],
)
def test_commands_on_a_machine_without_programs_end_with_the_next_step(
    tmp_path: Path, arguments: list[str], again: str
) -> None:
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    line = [sys.executable, str(REPOSITORY / arguments[0]), *arguments[1:]]
    done = subprocess.run(
        line, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Next: put a newer Go on PATH")
    assert last.endswith(f"{again}`.")
