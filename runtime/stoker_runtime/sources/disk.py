"""Room on a disk, and what goes wrong with it: the same for downloads from anywhere."""

from __future__ import annotations

import errno
import shutil
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

from stoker_runtime.errors import ModelError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EROFS, errno.EPERM})


def check_room(needed: int, model: str, cache_dir: Path) -> None:
    """Check that a download fits.

    Args:
        needed: bytes still to come.
        model: the source as the user knows it.
        cache_dir: on the disk in question.

    Raises:
        ModelError: DiskFull.
        OSError: the disk cannot be asked.
    """
    free = shutil.disk_usage(cache_dir).free
    if needed > free:
        raise ModelError(
            f"{model} needs {gibibytes(needed)} more in {cache_dir}, which has {gibibytes(free)} free; "
            f"use a larger cache volume",
            reason="DiskFull",
        )


def disk_fault(chain: Sequence[BaseException], model: str) -> ModelError | None:
    """Return what a failure says about the disk; None where it is about something else.

    Args:
        chain: the failure and what caused it.
        model: the source as the user knows it.
    """
    numbers = _numbers(chain)
    if numbers & _NO_ROOM:
        return ModelError(
            f"{model}: the disk filled up during the download; use a larger cache volume", "DiskFull"
        )
    if numbers & _NOT_WRITABLE:
        return ModelError(f"{model}: cannot write the cache: {first_line(chain[0])}", reason="DownloadFailed")
    return None


def first_line(error: BaseException) -> str:
    """Return an exception as one line of text."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def gibibytes(num_bytes: int) -> str:
    """Return a size for people: GiB with two digits, MiB below one hundredth of a GiB."""
    if num_bytes < 2**30 / 100:
        return f"{num_bytes / 2**20:.2f} MiB"
    return f"{num_bytes / 2**30:.2f} GiB"


def _numbers(chain: Sequence[BaseException]) -> set[int | None]:
    """Return the error numbers of the system; those of TLS errors count something else."""
    return {
        cause.errno for cause in chain if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError)
    }


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and what caused it, outermost first; a loop in the chain ends it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
