"""The frame of a command that a person typed: how it ends, whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from cluster import failures, ledger
from cluster.api import ClusterError
from cluster.progress import DONE, FAILED, STOPPED, say

INTERRUPTED = 130
# The command that a person typed, which make hands down.
COMMAND = "STOKER_COMMAND"


def again(default: str) -> str:
    """The command that a person typed, whichever part of it this process is."""
    return os.environ.get(COMMAND) or default


def children() -> list[int]:
    """The processes that this one started and that still run, where the kernel says so (Linux)."""
    return [
        int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()
    ]


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, so that what was begun is cleared away.

    A terminal sends Ctrl-C to the children, too. This signal comes to one process, so it is handed on.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for pid in children():
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, signal.SIGTERM)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(label: str, body: Callable[[], object], *, is_last: bool = True) -> int:
    """Run a command to its end; say what failed, where the time went, and last of all what to do next.

    Args:
        label: what the ledger is called, and what a person types again when no make says better.
        is_last: whether nothing follows in the same make when it succeeds; else its steps are left to what
            follows, and only a failure ends with the ledger.

    Returns:
        The exit status.
    """
    command, begun_s = again(label), time.time()
    outcome, status, last = DONE, 0, ""
    try:
        with terminable():
            body()
    except KeyboardInterrupt:
        outcome, status = STOPPED, INTERRUPTED
        last = failures.line(f"`{command}` goes on where it stopped; `make demo-down` removes the cluster.")
    except (ClusterError, OSError, subprocess.SubprocessError) as error:
        outcome, status = FAILED, 1
        say(f"\n{failures.text_of(error)}")
        last = failures.line(failures.next_step(error, command))
    except Exception as error:
        outcome, status = FAILED, 1
        say(f"\n{traceback.format_exc()}")
        last = failures.line(failures.advice(str(error), command))
    if is_last or status:
        ledger.finish(label, outcome, begun_s)
    else:
        ledger.hand_on()
    if last:
        say(f"\n{last}")
    return status
