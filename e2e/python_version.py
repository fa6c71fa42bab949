"""Ends a script with a plain message where the Python that runs it is too old.

The scripts that run before there is an environment import it first. An older Python 3 has to understand this
file as a whole; of theirs it has to understand the grammar, and to begin with this import: hence no
annotations in it that are evaluated, and no `from __future__ import annotations` in them, which 3.6 refuses.
"""

import os
import re
import shutil
import sys

MIN_PYTHON = (3, 11)
NEWEST_MINOR = 30  # names on PATH are looked for up to here
UNKNOWN = "python3.X"  # for a person to fill in


def newer() -> str:
    """The name of a Python on PATH that is new enough, the oldest of them; else UNKNOWN."""
    names = [f"python3.{minor}" for minor in range(MIN_PYTHON[1], NEWEST_MINOR)]
    return next((name for name in names if shutil.which(name)), UNKNOWN)


def refusal(version: "tuple[int, ...]", command: str) -> str:
    """What to say of a Python that is too old, with what to do next as the last line.

    Args:
        version: its version.
        command: what a person typed.
    """
    have, wanted = (".".join(str(part) for part in parts) for parts in (version, MIN_PYTHON))
    name = newer()
    get = "install one (on Debian and Ubuntu as root `apt-get install python3.X-venv`), then "
    again = re.sub(r"\s*\bPYTHON=\S*", "", command) + f" PYTHON={name}"
    return (
        f"This machine lacks:\n  - Python {wanted} or newer: this is {have}.\n\n"
        f"Next: {get * (name == UNKNOWN)}`{again}`."
    )


if tuple(sys.version_info[:2]) < MIN_PYTHON:
    sys.exit(refusal(tuple(sys.version_info[:3]), os.environ.get("STOKER_COMMAND") or "make preflight"))
