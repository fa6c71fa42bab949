"""Server-sent events, as much of them as OpenAI streams use: `data:` lines ended by an empty line."""

from __future__ import annotations

DONE = "[DONE]"


class SseParser:
    """Cut a byte stream, in whatever pieces it arrives, into event payloads."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[str]:
        """Return the payloads of the events that this piece completes, in order."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        payloads = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                payloads.append(b"\n".join(self._data).decode())
                self._data = []
        return payloads
