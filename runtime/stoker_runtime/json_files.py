"""The small JSON files of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stoker_runtime.errors import ModelError
from stoker_runtime.lfs import unreadable


def read_object(path: Path) -> dict[str, Any]:
    """Return what a file of one JSON object holds.

    Raises:
        ModelError: it cannot be read, or holds something else; names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a mark first
    except (OSError, ValueError) as error:
        raise ModelError(f"{unreadable(path, error)}; download it anew") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, not an object; download it anew")
    return found
