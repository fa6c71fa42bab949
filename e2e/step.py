"""Runs one command as a step: `python3 e2e/step.py TITLE COMMAND [ARGUMENT...]`.

The Makefile's installations go through it. So their seconds are in the ledger that the last command of the
same make prints, and when one fails, what to do next is the last line. It runs on a bare Python 3.11.
"""

import python_version  # noqa: F401  (ends this script where the Python is too old)

# isort: split
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from cluster import failures, shell
from cluster.api import ClusterError
from cluster.progress import say, step

# What the Makefile makes of a half environment.
ANEW = "makes the environment anew from what was downloaded so far"
PATIENCE_S = 5.0


@contextlib.contextmanager
def temporary_folder(environment: Path) -> Iterator[Path]:
    """A folder for what pip and ensurepip unpack: in the environment, with which it goes after a kill."""
    environment.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=environment, ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


def started(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start a command, in a process group of its own: all of it can be ended then, also what others started.

    Args:
        folder: for its temporary files.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(folder)},
        process_group=0,
    )


def end(process: subprocess.Popen[str]) -> None:
    """End a command and what it started, after a moment in which it may clear away."""
    no_group = contextlib.suppress(ProcessLookupError, PermissionError)  # what is left of it, if anything
    with no_group:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=PATIENCE_S)
    finally:  # also after one more Ctrl-C
        with no_group:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(command: list[str], environment: Path) -> None:
    """Run a command, pass its output on, and look into the end of it when it fails.

    Args:
        environment: the folder that it installs into.

    Raises:
        ClusterError: it failed; the next step goes by what it printed last.
    """
    tail: deque[str] = deque(maxlen=60)
    process: subprocess.Popen[str] | None = None
    with temporary_folder(environment) as folder:
        try:
            with shell.undivided():
                process = started(command, folder)
            with process:
                for line in process.stdout or ():
                    tail.append(line)
                    say(line.rstrip("\n"))
        except BaseException:
            if process:
                end(process)
            raise
    if process.returncode:
        said = "".join(tail)
        raise ClusterError(
            f"`{' '.join(command)}` failed with {process.returncode}; see above.",
            next_step=failures.advice(f"failed with {process.returncode}\n{said}", "{again}", ANEW),
        )


def main(arguments: list[str]) -> int:
    """Run the step; the exit status says whether it succeeded."""
    if len(arguments) < 2:
        sys.exit("usage: step.py TITLE COMMAND [ARGUMENT...]")
    title, *command = arguments

    def body() -> None:
        with step(title):
            run(command, Path(".venv"))

    return shell.run("make install", body, is_last=False, goes_on=ANEW)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
