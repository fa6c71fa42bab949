"""What this process may use of the machine: CPUs and memory under its cgroup's limits, and give back.

Read from /proc and /sys by two public functions; nothing is cached. Both cgroup versions are read, each
level up to the root, because a limit may sit on any of them (a pod's, or the slice above it).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(root: Path = Path("/"), affinity: int | None = None) -> int:
    """Count the CPUs that compute threads can keep busy without being throttled.

    Args:
        root: where /proc and /sys are mounted.
        affinity: CPUs this process may be scheduled on; None asks the kernel.

    Returns:
        The smaller of the affinity and the tightest CPU quota, rounded down (a thread beyond the quota only
        waits at barriers), at least 1.
    """
    if affinity is None:
        affinity = len(os.sched_getaffinity(0))
    quotas = [quota for level in _levels(root, "cpu") if (quota := _cpu_quota(level)) is not None]
    return max(1, int(min([affinity, *quotas])))


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Return how many bytes this process can still take before the kernel or its cgroup refuses.

    Page cache that the kernel can drop counts as available. Raises OSError when /proc/meminfo cannot be read.
    """
    free = [_meminfo(root / "proc/meminfo", "MemAvailable")]
    free += [left for level in _levels(root, "memory") if (left := _memory_left(level)) is not None]
    return max(0, min(free))


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """Return the most that processes here may take together: the machine's memory, or a cgroup's limit.

    Raises OSError when /proc/meminfo cannot be read.
    """
    limits = [_meminfo(root / "proc/meminfo", "MemTotal")]
    limits += [limit for level in _levels(root, "memory") if (limit := _memory_limit(level)) is not None]
    return min(limits)


def num_oom_kills(root: Path = Path("/")) -> int:
    """Count the processes of this cgroup that the kernel ended for lack of memory; 0 where none counts."""
    for level in _levels(root, "memory"):
        events = _text(level / "memory.events") or _text(level / "memory.oom_control")
        for line in events.splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def _levels(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of this process's cgroup that has the controller, then its parents'.

    A container often sees its own group mounted as the root while /proc names the path outside; those folders
    do not exist here, and the walk ends at the mounted root, which is the right one.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for level in (inside, *inside.parents):
            yield mount / level


def _cpu_quota(level: Path) -> float | None:
    quota, _, period = _text(level / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(level / "cpu.cfs_quota_us"), _text(level / "cpu.cfs_period_us")
    if quota in ("", "max") or int(quota) <= 0 or not period:
        return None
    return int(quota) / int(period)


def _memory_limit(level: Path) -> int | None:
    limit = _text(level / "memory.max") or _text(level / "memory.limit_in_bytes")
    return None if limit in ("", "max") else int(limit)


def _memory_left(level: Path) -> int | None:
    limit, usage, droppable = _memory_limit(level), _text(level / "memory.current"), "inactive_file"
    if not usage:
        usage, droppable = _text(level / "memory.usage_in_bytes"), "total_inactive_file"
    if limit is None or not usage:
        return None
    fields = dict(line.split() for line in _text(level / "memory.stat").splitlines())
    return limit - int(usage) + int(fields.get(droppable, 0))


def _meminfo(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    raise OSError(f"{path} has no {field} line")


def _text(path: Path) -> str:
    """Return a file's text, or "" where this kernel or cgroup version has no such file."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def return_freed_memory() -> None:
    """Give back to the kernel what this process has freed and its allocator keeps, if that is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
