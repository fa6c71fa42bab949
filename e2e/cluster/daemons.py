"""Daemons that outlive the process that starts them, each inside a cgroup and perhaps a network namespace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster.cgroups import tracking_root
from cluster.host import NETNS, UMASK


def daemon_command(command: Sequence[str], *, cgroup: str, pid_file: Path, netns: str | None) -> list[str]:
    """The command line that starts a detached daemon inside a cgroup and a network namespace."""
    script = 'echo $$ >"$1" && echo $$ >"$2" && shift 2 && exec "$@"'
    enter = ["nsenter", f"--net={NETNS / netns}"] if netns else []
    procs = str(tracking_root() / cgroup / "cgroup.procs")
    return ["setsid", "--fork", "sh", "-c", script, "sh", procs, str(pid_file), *enter, *command]


def start_daemon(
    name: str, command: Sequence[str], *, cgroup: str, folder: Path, logs: Path, netns: str | None, path: str
) -> None:
    """Start a daemon that outlives this process.

    Args:
        folder: where NAME.pid is written.
        logs: where NAME.log is written.
        path: the PATH that it sees.
    """
    line = daemon_command(command, cgroup=cgroup, pid_file=folder / f"{name}.pid", netns=netns)
    environment = {"PATH": path, "HOME": str(Path.home()), "GOMAXPROCS": os.environ.get("GOMAXPROCS", "")}
    with open(logs / f"{name}.log", "ab") as log:
        subprocess.run(
            line,
            env={key: value for key, value in environment.items() if value},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            check=True,
            timeout=30,
            umask=UMASK,
        )


def is_running(pid_file: Path) -> bool:
    """Whether the daemon that wrote this file still runs; a zombie does not."""
    try:
        state = Path(f"/proc/{int(pid_file.read_text())}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return False
    return state.rpartition(")")[2].split()[0] not in ("Z", "X")
