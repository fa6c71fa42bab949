"""Frames over one non-blocking stream socket: commands in, events out. Nothing sent is ever dropped."""

from __future__ import annotations

import select
import socket

from stoker_runtime.messages import HEADER_BYTES, Command, Event, decode_command, encode_frame, frame_length

_READ_BYTES = 256 * 1024
_READS_PER_CALL = 16  # a long prompt is several reads; more than this and running requests would wait
_MAX_OUTBOX_BYTES = 8 * 1024**2  # a server that is this far behind has to catch up first


class Connection:
    """The engine's end of its socket to the server.

    Args:
        sock: connected stream socket; becomes non-blocking and is closed by its owner.
        max_outbox_bytes: unsent bytes above which `is_congested`.
    """

    def __init__(self, sock: socket.socket, max_outbox_bytes: int = _MAX_OUTBOX_BYTES) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._max_outbox_bytes = max_outbox_bytes
        self.is_open = True  # False once the server has closed its end

    @property
    def is_congested(self) -> bool:
        """Whether the server reads so slowly that nothing more should be produced."""
        return len(self._outbox) > self._max_outbox_bytes

    def send(self, event: Event) -> None:
        """Queue an event and send what the socket takes now."""
        self._outbox += encode_frame(event)
        self._write()

    def exchange(self, timeout_s: float) -> list[Command]:
        """Sleep until there is something to read or room to write, then do both.

        Args:
            timeout_s: longest sleep; 0 only looks.

        Returns:
            The commands that are complete, in order.

        Raises:
            msgspec.DecodeError: a frame is not a command.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._outbox else 0))
        if poll.poll(timeout_s * 1000):
            self._write()
            self._read()
        return self._complete_commands()

    def flush(self, timeout_s: float) -> None:
        """Send what is queued, waiting for the server to take it.

        Raises:
            OSError: the server is gone or did not read it in time (TimeoutError).
        """
        self._sock.settimeout(timeout_s)
        self._sock.sendall(self._outbox)
        self._outbox.clear()
        self._sock.setblocking(False)

    def _read(self) -> None:
        for _ in range(_READS_PER_CALL):
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self.is_open = False
                return
            self._inbox += data

    def _write(self) -> None:
        while self._outbox:
            try:
                sent = self._sock.send(self._outbox)
            except BlockingIOError:
                return
            except ConnectionError:
                self.is_open = False
                return
            del self._outbox[:sent]

    def _complete_commands(self) -> list[Command]:
        commands = []
        start = 0
        while len(self._inbox) >= start + HEADER_BYTES:
            body = start + HEADER_BYTES
            end = body + frame_length(bytes(self._inbox[start:body]))
            if len(self._inbox) < end:
                break
            commands.append(decode_command(bytes(self._inbox[body:end])))
            start = end
        del self._inbox[:start]
        return commands
