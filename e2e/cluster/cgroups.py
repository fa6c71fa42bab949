"""Control groups: the parents of pods, and the record of which process belongs to which cluster.

Every daemon is put into a cgroup of its cluster before it runs. Those cgroups, not a list of process ids, say
what belongs to the cluster: children inherit them, also those of a daemon that crashed, and a process id that
the kernel gave to somebody else can never be in one. Both cgroup versions are supported.
"""

from __future__ import annotations

import errno
import os
import signal
from functools import partial
from pathlib import Path

from cluster.api import ClusterError
from cluster.host import wait_for

CGROUPS = Path("/sys/fs/cgroup")


def is_unified() -> bool:
    """Whether the host has only the version 2 hierarchy."""
    return (CGROUPS / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """The root of every mounted cgroup hierarchy, version 1 and 2."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in mounts if fields[2] in ("cgroup", "cgroup2")]


def tracking_root() -> Path:
    """The hierarchy whose cgroups record which process belongs to which cluster."""
    return CGROUPS if is_unified() else CGROUPS / "pids"


def make(path: str) -> None:
    """Create a cgroup in every hierarchy, ready to hold pods.

    Raises:
        ClusterError: the root cgroup that this process sees has processes of its own and refuses to hand its
            controllers down, as it does inside a container.
    """
    for root in hierarchies():
        parent = root
        for part in Path(path).parts:
            child = parent / part
            child.mkdir(exist_ok=True)
            if is_unified():
                delegate_controllers(parent)
            elif (child / "cpuset.cpus").exists():
                # Version 1 starts a cpuset empty, and an empty one accepts no process.
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (child / name).write_text((parent / name).read_text())
            parent = child


def delegate_controllers(folder: Path) -> None:
    """Let the children of a version 2 cgroup use every controller that it has itself."""
    controllers = (folder / "cgroup.controllers").read_text().split()
    try:
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
    except OSError as error:
        raise ClusterError(
            f"cannot hand cgroup controllers down from {folder} ({error.strerror}); "
            "inside a container, move its processes out of the root cgroup first."
        ) from error


def members(path: str) -> list[int]:
    """Every process in a cgroup and the ones below it."""
    pids: list[int] = []
    for base, _, _ in os.walk(tracking_root() / path):
        try:
            pids += [int(line) for line in (Path(base) / "cgroup.procs").read_text().split()]
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # removed while we looked
                raise
    return pids


def kill_members(path: str, timeout_s: float = 20) -> None:
    """Kill every process in a cgroup and below, and wait until none is left."""

    def is_empty() -> bool:
        pids = members(path)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not pids

    wait_for(f"the end of the processes in cgroup {path}", is_empty, timeout_s, lambda: str(members(path)))


def remove(path: str, timeout_s: float = 10) -> None:
    """Remove a cgroup and the ones below it from every hierarchy; its processes must have ended."""
    for root in hierarchies():
        wait_for(f"removal of {root / path}", partial(is_removed, root / path), timeout_s)


def is_removed(top: Path) -> bool:
    """Remove what is empty of a cgroup and the ones below it; True when nothing is left."""
    for base, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(base)
        except OSError as error:
            # The kernel lets go of a cgroup a moment after its last process; wait for it.
            if error.errno not in (errno.ENOENT, errno.EBUSY):
                raise
    return not top.exists()
