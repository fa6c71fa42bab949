"""Git LFS pointers: what a repository holds in place of large files when it was cloned without Git LFS."""

from __future__ import annotations

from pathlib import Path

_FIRST_LINE = b"version https://git-lfs.github.com/spec/"


def unreadable(path: Path, error: Exception) -> str:
    """Say why a large file of a model cannot be read.

    Args:
        path: the file.
        error: what its reader said.
    """
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_FIRST_LINE)) == _FIRST_LINE
    except OSError:
        is_pointer = False
    if is_pointer:
        return f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in the repository"
    return f"{path} cannot be read: {error}"
