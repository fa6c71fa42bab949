"""Waits for the locks of apt and dpkg, aloud.

A fresh Ubuntu runs apt on its own for minutes after its first boot. apt-get can wait for dpkg's two locks
itself (`DPkg::Lock::Timeout`, from 1.9.11), but not for that of the package lists, for which `apt-get update`
fails at once (tried with 2.6.1). So every refusal is read from its message and the lock is looked at here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.api import ClusterError
from cluster.progress import say

# What apt and dpkg say of a lock that somebody else holds, in the C locale; the lock file is the first group.
REFUSALS = (
    re.compile(r"Could not get lock (?P<path>/\S*?)\.? (?:It is held by process (?P<pid>\d+)|- open \(11)"),
    re.compile(r"Could not get lock (?P<path>/\S*[^\s.])"),
    re.compile(
        r"dpkg frontend lock (?:\((?P<path>/[^)]+)\), is another process using it|was locked by another)"
    ),
    re.compile(r"Unable to lock the administration directory \((?P<folder>/[^)]*?)/?\), is another process"),
    re.compile(r"Unable to lock directory (?P<folder>/\S*?)/?$", re.MULTILINE),
    re.compile(
        r"dpkg (?P<database>database|status database) (?:lock was locked|is locked) by another process"
    ),
)
FRONTEND_LOCK = Path("/var/lib/dpkg/lock-frontend")
DATABASE_LOCK = Path("/var/lib/dpkg/lock")
# struct flock of 64-bit Linux: type, whence, start, length, process.
FLOCK = "hhqqi4x"


@dataclass(frozen=True)
class Waiting:
    """How long to wait for a lock, how often to say so and how often to look, in seconds."""

    limit_s: float = 900.0
    say_every_s: float = 15.0
    look_every_s: float = 0.5


PATIENT = Waiting()


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock; pid 0 is one that this process cannot see (outside of a container)."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})" if self.pid else "a process outside this container"


def refused(output: str) -> Path | None:
    """The lock that apt-get could not get, by what it printed; None when it failed for another reason."""
    for pattern in REFUSALS:
        found = pattern.search(output)
        if found is None:
            continue
        groups = found.groupdict()
        if groups.get("path"):
            return Path(groups["path"])
        if groups.get("folder"):
            return Path(groups["folder"]) / "lock"
        return DATABASE_LOCK if groups.get("database") else FRONTEND_LOCK
    return None


def holder(lock: Path) -> Holder | None:
    """Who holds a lock file now, by what the kernel says; None when nobody does.

    Raises:
        ClusterError: the file cannot be read by this user.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClusterError(f"cannot look at {lock}: {error.strerror}") from error
    try:
        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else Holder(max(pid, 0), name_of(pid))


def name_of(pid: int) -> str:
    """What a process is called, with the script that it runs when it is an interpreter."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        short = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EACCES):
            raise
        return "a process that just ended"
    return f"{short} {script_of(words)}".strip() if short.startswith("python") else short


def script_of(words: Sequence[str]) -> str:
    """The name of the script that a Python was started with; empty when it runs no file."""
    for word in words[1:]:
        if not word.startswith("-"):
            return Path(word).name
        if word in ("-c", "-m"):
            break
    return ""


class Wait:
    """The waiting of one command, which may meet several locks one after the other."""

    def __init__(
        self,
        waiting: Waiting,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._waiting = waiting
        self._clock, self._sleep = clock, sleep
        self._start_s = clock()
        self._said_s = float("-inf")

    def until_free(self, lock: Path) -> None:
        """Wait until nobody holds a lock; say who does, at once and then every so often.

        Raises:
            ClusterError: the time is up; the text names who holds the lock.
        """
        held_by = holder(lock)
        if held_by is None:
            # Free again already, or its holder comes and goes: apt-get is asked again, but not without end.
            self._check(lock, "a process that comes and goes", 0)
            self._sleep(self._waiting.look_every_s)
        while held_by is not None:
            self._check(lock, str(held_by), held_by.pid)
            self._sleep(self._waiting.look_every_s)
            held_by = holder(lock)

    def _check(self, lock: Path, who: str, pid: int) -> None:
        now = self._clock()
        waited_s = now - self._start_s
        if waited_s > self._waiting.limit_s:
            look = f"look at it with `ps -fp {pid}`; " if pid else ""
            raise ClusterError(
                f"{who} holds {lock}, which package installations need, for more than {waited_s:.0f} s.",
                next_step=f"{look}let it end (a fresh Ubuntu updates itself; as root `systemctl "
                "stop unattended-upgrades apt-daily.service apt-daily-upgrade.service` ends that), "
                "then `{again}`.",
            )
        if now - self._said_s >= self._waiting.say_every_s:
            self._said_s = now
            left_s = self._waiting.limit_s - waited_s
            say(f"    waiting for {who}, which holds {lock}; for at most {left_s / 60:.0f} min more")
