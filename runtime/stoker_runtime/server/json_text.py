"""JSON as it goes to clients: whatever splits it at line ends gets each event whole. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode
# Line ends beyond ASCII, which JSON lets stand and readers such as httpx' `iter_lines` split at. In UTF-8
# each one's bytes are found nowhere else. Those of ASCII are control characters, which JSON escapes.
_LINE_ENDS = tuple((char.encode(), rf"\u{ord(char):04x}".encode()) for char in "\x85\u2028\u2029")


def to_json(value: Any) -> bytes:
    """Return the value as JSON in UTF-8 in which no character ends a line, by any reader's idea of lines."""
    data = _encode(value)
    if not data.isascii():
        for char, escaped in _LINE_ENDS:
            if char in data:
                data = data.replace(char, escaped)
    return data
