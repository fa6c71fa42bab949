"""A file that arrives in pieces, in any order, and is there under its name only when it is whole.

Which pieces a killed download left is noted beside it, each after its bytes were forced to the disk. Several
processes may write the same file at once: they write the same bytes to the same places.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

PIECE_BYTES = 16 * 2**20


# A download that lives writes to its file every few minutes at least; one that was killed leaves it for good.
_STALE_S = 3600.0


def remove_stale(folder: Path, kept: Collection[str], now_s: float) -> None:
    """Remove what killed downloads of other files left behind.

    Args:
        folder: with files that arrive.
        kept: names of those that are wanted.
        now_s: seconds since 1970.

    Raises:
        OSError: the disk does not let us.
    """
    for partial in folder.glob("*.partial"):
        if partial.stem not in kept and now_s - partial.stat().st_mtime > _STALE_S:
            partial.with_suffix(".pieces").unlink(missing_ok=True)
            partial.unlink(missing_ok=True)


class PieceFile:
    """The file while it arrives.

    Args:
        path: where it is in the end.
        size: of the whole, in bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._partial = path.with_name(f"{path.name}.partial")
        self._notes = path.with_name(f"{path.name}.pieces")

    @property
    def is_whole(self) -> bool:
        """Whether it is there under its name."""
        return self.path.is_file() and self.path.stat().st_size == self.size

    def missing(self) -> list[tuple[int, int]]:
        """Return where the missing pieces begin and end, in bytes."""
        starts = range(0, self.size, PIECE_BYTES)
        noted = self._noted()
        return [(start, min(start + PIECE_BYTES, self.size)) for start in starts if start not in noted]

    def _noted(self) -> set[int]:
        if not self._partial.is_file() or self._partial.stat().st_size != self.size:
            # Notes of a file that is not there speak of another one.
            self._notes.unlink(missing_ok=True)
            return set()
        # A line that was cut off by a crash is none.
        lines = self._notes.read_text().splitlines(keepends=True) if self._notes.is_file() else []
        return {int(line) for line in lines if line.endswith("\n") and line.strip().isdigit()}

    def begin(self) -> None:
        """Have a file of the whole size to write to.

        Raises:
            OSError: the disk does not let us.
        """
        with self._partial.open("ab") as file:
            file.truncate(self.size)

    def write(self, start: int, data: bytes | memoryview) -> None:
        """Write a piece and note it.

        Raises:
            OSError: the disk is full, or the like.
        """
        descriptor = os.open(self._partial, os.O_WRONLY)
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(descriptor, data[done:], start + done)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        with self._notes.open("ab", buffering=0) as notes:
            notes.write(b"%d\n" % start)

    def finish(self) -> None:
        """Give the file its name.

        Raises:
            OSError: the disk does not let us.
        """
        try:
            os.replace(self._partial, self.path)
        except FileNotFoundError:
            # Another process has just done it.
            if not self.is_whole:
                raise
        self._notes.unlink(missing_ok=True)
