"""Progress lines on standard error, each with the time it took, and the record of all of them.

Only the standard library is imported: the steps before the installation of the project's dependencies are
recorded, too.
"""

from __future__ import annotations

import dataclasses
import errno
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

DONE, FAILED, STOPPED, CACHED = "done", "failed", "stopped", "cached"
# Ctrl-C ends the programs of all threads at once; their failure may be seen a moment before the signal is.
LAG_S = 1.0


@dataclass(frozen=True)
class Entry:
    """One step that ended, or something that an earlier run left ready.

    Attributes:
        start_s: when it began, in seconds since the epoch.
        seconds: how long it took; 0 when it was cached.
        outcome: DONE, FAILED, STOPPED or CACHED.
        depth: how many steps it was part of; only entries of depth 0 add up.
    """

    title: str
    start_s: float
    seconds: float = 0.0
    outcome: str = DONE
    depth: int = 0


class Record:
    """The steps of this process. What threads do side by side is part of nothing but their own steps."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._open: dict[int, int] = {}
        self._interrupted_s = float("inf")
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """What ended so far, in the order in which it began.

        What failed after an interrupt was stopped by it: in threads it shows as the failure of a program.
        """
        with self._lock:
            found = [self._stopped(entry) for entry in self._entries]
        return sorted(found, key=lambda entry: (entry.start_s, entry.depth))

    def _stopped(self, entry: Entry) -> Entry:
        is_late = entry.start_s + entry.seconds > self._interrupted_s - LAG_S
        return dataclasses.replace(entry, outcome=STOPPED) if entry.outcome == FAILED and is_late else entry

    def interrupt(self, now_s: float) -> None:
        """Note that this process was told to end; the first time counts.

        Args:
            now_s: seconds since the epoch.
        """
        self._interrupted_s = min(self._interrupted_s, now_s)  # no lock: a signal's handler may be within one

    def begin(self) -> int:
        """Note that a step of this thread begins; return how many others it is part of."""
        this = threading.get_ident()
        with self._lock:
            outer = self._open.get(this, 0)
            self._open[this] = outer + 1
        return outer

    def end(self, entry: Entry) -> None:
        """Note how the innermost step of this thread ended."""
        with self._lock:
            self._open[threading.get_ident()] -= 1
            self._entries.append(entry)

    def add(self, entry: Entry) -> None:
        """Note something that was no step of this process."""
        with self._lock:
            self._entries.append(entry)


RECORD = Record()


def say(text: str) -> None:
    """Print one line at once, also when the output is a file.

    A terminal that was closed takes none. Then nobody reads it, and there is still something to clear away.
    """
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def interrupted() -> None:
    """Record that this process was told to end."""
    RECORD.interrupt(time.time())


def found(title: str) -> None:
    """Record, without a line, what an earlier run left ready."""
    RECORD.add(Entry(title, time.time(), outcome=CACHED))


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, say how long it took or that it failed, and record it."""
    say(f"  · {title}")
    start, start_s = time.monotonic(), time.time()
    depth = RECORD.begin()
    outcome = FAILED
    try:
        yield
        outcome = DONE
    except KeyboardInterrupt:
        outcome = STOPPED
        raise
    finally:
        seconds = time.monotonic() - start
        RECORD.end(Entry(title, start_s, seconds, outcome, depth))
        if outcome == DONE:
            say(f"  ✓ {title} in {seconds:.1f} s")
        else:
            say(f"  ✗ {title} after {seconds:.1f} s")
