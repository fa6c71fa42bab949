"""Commands, conditions and network namespaces of the host."""

from __future__ import annotations

import fcntl
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.api import ClusterError
from cluster.progress import say

NETNS = Path("/run/netns")
POLL_S = 0.05
LINKS = Path("/tmp")  # whatever TMPDIR says: it has no blank
# What is made here goes into images and pods, whose users are others than the one with a strict umask.
UMASK = 0o022
Condition = Callable[[], bool]


def run(command: Sequence[str], *, text: str | None = None, timeout_s: float = 120) -> str:
    """Run a command to its end and return its output.

    Args:
        text: what the command reads from its standard input.

    Raises:
        ClusterError: it failed or took too long; its error output is in the text.
    """
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            umask=UMASK,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{shlex.join(command)}` did not end within {timeout_s:.0f} s.") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise ClusterError(f"`{shlex.join(command)}` failed with {done.returncode}: {said}")
    return done.stdout


def succeeds(command: Sequence[str], timeout_s: float = 10) -> bool:
    """Whether a command ends with success in time; for polling."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def wait_for(what: str, is_true: Condition, timeout_s: float, hint: Callable[[], str] = str) -> None:
    """Poll until a condition holds.

    Args:
        hint: called when time is up; its text joins the error.

    Raises:
        ClusterError: it did not hold within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not happen within {timeout_s:.0f} s. {hint()}".rstrip())
        time.sleep(POLL_S)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which stays; wait for whoever holds it now, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"    waiting for another run, which holds {path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_now(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock on a file if nobody else holds it; yields whether it is held."""
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def without_blanks(folder: Path) -> Iterator[Path]:
    """A path of a folder for programs that cannot have blanks in it (mmdebstrap): its own or a link's."""
    if not any(character.isspace() for character in str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="stoker-link-", dir=LINKS) as place:
        link = Path(place) / "link"
        link.symlink_to(folder)
        yield link


def num_bytes(folder: Path) -> int:
    """Bytes that a folder takes on its file system."""
    command = ["du", "--summarize", "--one-file-system", "--block-size=1", str(folder)]
    return int(run(command, timeout_s=600).split()[0])


def tail(path: Path, max_bytes: int = 3000) -> str:
    """The end of a log, for error messages."""
    if not path.exists():
        return f"{path} does not exist."
    return f"End of {path}:\n" + path.read_bytes()[-max_bytes:].decode(errors="replace")


def netns_names() -> list[str]:
    """Every network namespace that has a name."""
    return sorted(path.name for path in NETNS.iterdir()) if NETNS.is_dir() else []


def delete_netns(name: str) -> None:
    """Delete one network namespace by name, if it is there."""
    if (NETNS / name).exists():
        run(["ip", "netns", "delete", name])
