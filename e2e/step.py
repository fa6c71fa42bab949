"""Runs one command as a step: `python3 e2e/step.py TITLE COMMAND [ARGUMENT...]`.

The Makefile's installations go through it. So their seconds are in the ledger that the last command of the
same make prints, and when one fails, what to do next is the last line. It runs on a bare Python 3.11.
"""

import python_version  # noqa: F401  (ends this script where the Python is too old)

# isort: split
import subprocess
import sys
from collections import deque

from cluster import failures, shell
from cluster.api import ClusterError
from cluster.progress import step


def run(command: list[str]) -> None:
    """Run a command, pass its output on, and look into the end of it when it fails.

    Raises:
        ClusterError: it failed; the next step goes by what it printed last.
    """
    tail: deque[str] = deque(maxlen=60)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            tail.append(line)
            sys.stderr.write(line)
    if process.returncode:
        said = "".join(tail)
        raise ClusterError(
            f"`{' '.join(command)}` failed with {process.returncode}; see above.",
            next_step=failures.advice(f"failed with {process.returncode}\n{said}", "{again}"),
        )


def main(arguments: list[str]) -> int:
    """Run the step; the exit status says whether it succeeded."""
    if len(arguments) < 2:
        sys.exit("usage: step.py TITLE COMMAND [ARGUMENT...]")
    title, *command = arguments

    def body() -> None:
        with step(title):
            run(command)

    return shell.run("make install", body, is_last=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
