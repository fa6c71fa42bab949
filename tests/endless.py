"""A program that does not end by itself, and whether somebody ended it."""

from __future__ import annotations

from pathlib import Path

from cluster import host

# Notes its process id in a file, whole or not at all.
ENDLESS = "echo $$ > '{pid}.new'; mv '{pid}.new' '{pid}'; exec sleep 600"


def noted(path: Path) -> int:
    """The process id that it noted."""
    host.wait_for(f"a process id in {path}", path.exists, 60)
    return int(path.read_text())


def runs(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for_end(pid: int) -> None:
    """Wait until somebody has ended a process."""
    host.wait_for(f"the end of process {pid}", lambda: not runs(pid), 20)
