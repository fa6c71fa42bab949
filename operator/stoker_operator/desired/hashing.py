"""Hashes of JSON values, stable across processes and versions of Python."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Made once: `json.dumps` makes a new one for each call that is not of its own defaults. What it writes is on
# record in clusters, so no other library may take its place: escapes and floats differ between them.
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def json_hash(value: Any, length: int) -> str:
    """Return the first `length` hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:length]
