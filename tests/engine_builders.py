"""The server's end of the engine's socket, for tests: send commands, read events with a deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from runtime_builders import FakeRunner, make_engine_config

from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import Runner
from stoker_runtime.engine.connection import Connection
from stoker_runtime.engine.loop import HEARTBEAT_S
from stoker_runtime.engine.process import serve
from stoker_runtime.messages import (
    HEADER_BYTES,
    Command,
    EngineFailed,
    EngineReady,
    Event,
    RequestOutput,
    StepOutputs,
    decode_event,
    encode_frame,
    frame_length,
)

DEADLINE_S = 20.0


class EnginePeer:
    """Speaks frames over a connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_S)
        self.sock = sock

    def send(self, *commands: Command) -> None:
        """Send commands in one write."""
        self.sock.sendall(b"".join(encode_frame(command) for command in commands))

    def read(self) -> Event | None:
        """Return the next event, or None when the engine has closed its end."""
        header = self._read_exactly(HEADER_BYTES)
        if header is None:
            return None
        body = self._read_exactly(frame_length(header))
        assert body is not None, "the engine closed its end inside a frame"
        return decode_event(body)

    def read_ready(self) -> EngineReady:
        """Return the next event, which must be EngineReady."""
        event = self.read()
        assert isinstance(event, EngineReady), event
        return event

    def read_failed(self) -> EngineFailed:
        """Return the next EngineFailed, skipping the steps before it."""
        while True:
            event = self.read()
            if isinstance(event, EngineFailed):
                return event
            assert isinstance(event, StepOutputs), event

    def read_step(self) -> StepOutputs:
        """Return the next event, which must be StepOutputs."""
        event = self.read()
        assert isinstance(event, StepOutputs), event
        return event

    def read_until(self, is_last: Callable[[StepOutputs], bool]) -> list[StepOutputs]:
        """Return the steps up to the first that `is_last` accepts, which must come within the deadline."""
        deadline_s = time.monotonic() + DEADLINE_S
        steps = []
        while time.monotonic() < deadline_s:
            steps.append(self.read_step())
            if is_last(steps[-1]):
                return steps
        raise AssertionError(f"not seen within {DEADLINE_S} s; the last step was {steps[-1]}")

    def read_to_end(self, *request_ids: str) -> dict[str, list[RequestOutput]]:
        """Return the outputs of these requests, once all of them have ended."""
        outputs: dict[str, list[RequestOutput]] = {request_id: [] for request_id in request_ids}
        open_ids = set(request_ids)
        while open_ids:
            for output in self.read_step().outputs:
                outputs.setdefault(output.request_id, []).append(output)
                if output.finish_reason is not None:
                    open_ids.discard(output.request_id)
        return outputs

    def _read_exactly(self, count: int) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                assert not data, "the engine closed its end inside a frame"
                return None
            data += piece
        return bytes(data)


@contextmanager
def engine_in_thread(
    runner: FakeRunner | None = None,
    config: EngineConfig | None = None,
    load_runner: Callable[[EngineConfig], Runner] | None = None,
    max_outbox_bytes: int | None = None,
    heartbeat_s: float = HEARTBEAT_S,
) -> Iterator[tuple[EnginePeer, list[int]]]:
    """Run the engine's whole life in a thread over a socket pair; ends by closing the server's end.

    Yields:
        The server's end, and a list that gets the exit status when the engine has ended.
    """
    ours, theirs = socket.socketpair()
    connection = Connection(theirs) if max_outbox_bytes is None else Connection(theirs, max_outbox_bytes)
    statuses: list[int] = []

    def run() -> None:
        with theirs:
            made = runner or FakeRunner()
            load = load_runner or (lambda _config: made)
            statuses.append(serve(connection, config or make_engine_config(), load, heartbeat_s))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with ours:
            yield EnginePeer(ours), statuses
    finally:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the engine did not end when its socket closed"
