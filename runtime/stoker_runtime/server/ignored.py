"""How fields of a request's body that nobody looked at are named to its client and in the log. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, islice

HEADER = "x-stoker-ignored"
_MAX_HEADER_BYTES = 2048
_MAX_NAME_CHARACTERS = 64
_NO_NAME = '""'  # how an empty name is shown
_MAX_LOGGED = 64
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-[]")


def header_value(names: Sequence[str]) -> str:
    """Return the names, separated by commas; a last `+N` stands for those that there is no room for.

    Names come from clients: what is not plain in them is percent-encoded UTF-8, so that they can end neither
    the header nor an entry of it.
    """
    cut = dict.fromkeys(name[:_MAX_NAME_CHARACTERS] or _NO_NAME for name in names)
    entries = [_encoded(name) for name in islice(cut, _MAX_HEADER_BYTES)]  # of more there is no room for any
    if len(entries) == len(cut) and len(whole := ",".join(entries)) <= _MAX_HEADER_BYTES:
        return whole
    room = _MAX_HEADER_BYTES - len(f"+{len(cut)}")
    ends = accumulate(len(entry) + 1 for entry in entries)  # of each entry with its comma
    num_shown = sum(end <= room for end in ends)
    return ",".join([*entries[:num_shown], f"+{len(cut) - num_shown}"])


def logged(names: Sequence[str]) -> list[str]:
    """Return as many names as a log line should have, each cut to a length that it should have."""
    return list(dict.fromkeys(name[:_MAX_NAME_CHARACTERS] for name in names))[:_MAX_LOGGED]


def _encoded(name: str) -> str:
    data = name.encode("utf-8", "surrogatepass")  # half of a surrogate pair is a character to JSON
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in data)
