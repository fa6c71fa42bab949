"""Hashes of JSON values, stable across processes and versions of Python."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def json_hash(value: Any, length: int) -> str:
    """Return the first `length` hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
