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
from cluster.progress import DONE, FAILED, STOPPED, interrupted, say

INTERRUPTED = 130
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The command that leaves a cluster behind when it is interrupted.
DEMO = "make demo"
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
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does, so that what was begun is cleared away.

    A terminal sends Ctrl-C to the children, too. The others may come to one process, so they are handed on.
    What this process was told to ignore stays ignored: SIGHUP under nohup, Ctrl-C in a shell's background.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted()
        if number != signal.SIGINT:
            for pid in children():
                with contextlib.suppress(ProcessLookupError):  # it ended by itself
                    os.kill(pid, signal.SIGTERM)
        raise KeyboardInterrupt

    heard = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Let a signal that ends this process wait until what is begun in here is whole: a program's start."""
    came: list[int] = []
    heard = [number for number in ENDING if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def run(
    label: str, body: Callable[[], object], *, is_last: bool = True, goes_on: str = failures.GOES_ON
) -> int:
    """Run a command to its end; say what failed, where the time went, and last of all what to do next.

    Args:
        label: what the ledger is called, and what a person types again when no make says better.
        is_last: whether nothing follows in the same make when it succeeds; else its steps are left to what
            follows, and only a failure ends with the ledger.
        goes_on: what the command does when it is run again after a failure or an interrupt, the verb first.

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
        cluster = "; `make demo-down` removes the cluster" if label == DEMO else ""
        last = failures.line(f"`{command}` {goes_on}{cluster}.")
    except (ClusterError, OSError, subprocess.SubprocessError) as error:
        outcome, status = FAILED, 1
        say(f"\n{failures.text_of(error)}")
        last = failures.line(failures.next_step(error, command, goes_on))
    except Exception as error:
        outcome, status = FAILED, 1
        say(f"\n{traceback.format_exc()}")
        last = failures.line(failures.advice(str(error), command, goes_on))
    if is_last or status:
        ledger.finish(label, outcome, begun_s)
    else:
        ledger.hand_on()
    if last:
        say(f"\n{last}")
    return status
