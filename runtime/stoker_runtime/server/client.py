"""The server's end of the socket to the engine: requests out, outputs in, and whether the engine lives.

One task reads frames and hands each output to the ticket it belongs to. A ticket is one HTTP request's view:
it waits for outputs of its engine requests and gives up what nobody waits for any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from stoker_runtime.config import ServerConfig
from stoker_runtime.errors import EngineDead, StokerError
from stoker_runtime.messages import (
    HEADER_BYTES,
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineReady,
    EngineStats,
    Event,
    RequestOutput,
    Shutdown,
    decode_event,
    encode_frame,
    frame_length,
)

logger = logging.getLogger(__name__)

_MAX_FRAME_BYTES = 1 << 30


class Ticket:
    """Outputs of one HTTP request's engine requests, in the order the engine gave them."""

    def __init__(self, client: EngineClient, request_ids: Sequence[str]) -> None:
        self._client = client
        self._open = dict(enumerate(request_ids))
        self._arrived: list[tuple[int, RequestOutput, float]] = []
        self._wake = asyncio.Event()
        self._error: StokerError | None = None

    def __aiter__(self) -> Ticket:
        return self

    async def __anext__(self) -> list[tuple[int, RequestOutput, float]]:
        """Return everything that arrived since the last call: index of the request, output, time it came.

        Raises:
            EngineDead: the engine is gone.
            StokerError: what fail() was called with.
        """
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        arrived, self._arrived = self._arrived, []
        return arrived

    def abort(self, index: int) -> None:
        """Give up one request; nothing more of it arrives. No effect once it has ended."""
        request_id = self._open.pop(index, None)
        if request_id is not None:
            self._client._abort(request_id)
        self._arrived = [item for item in self._arrived if item[0] != index]
        self._wake.set()

    def close(self) -> None:
        """Give up everything that has not ended."""
        for index in list(self._open):
            self.abort(index)

    def fail(self, error: StokerError) -> None:
        """End the wait with an error once what has arrived is read."""
        self._error = self._error or error
        self._wake.set()

    def _deliver(self, index: int, output: RequestOutput, at_s: float) -> None:
        if output.finish_reason is not None:
            self._open.pop(index, None)
        self._arrived.append((index, output, at_s))
        self._wake.set()


class EngineClient:
    """A connection to one engine.

    Args:
        clock: seconds that only grow, for the engine's silence.
        silence_limit_s: an engine that says nothing for longer counts as hung; it speaks after each step, and
            about once a second while it is idle.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        silence_limit_s: float = ServerConfig.step_timeout_s,
    ) -> None:
        self._clock = clock
        self._silence_limit_s = silence_limit_s
        self._heard_at = clock()
        self._writer: asyncio.StreamWriter | None = None
        self._tickets: dict[str, tuple[Ticket, int]] = {}
        self._prompts: dict[str, int] = {}  # tokens of requests whose first output has not come
        self.ready: EngineReady | None = None
        self.failed: EngineFailed | None = None
        self.stats = EngineStats()
        # Called after a step that gave somebody something, with its tokens as vLLM counts an iteration's:
        # those that it gave, and the computed ones of each prompt whose first token is among them.
        self.on_step: Callable[[int], None] = lambda num_tokens: None
        self.dead: EngineDead | None = None  # why it is gone
        self.is_dead = asyncio.Event()
        self.is_ready = asyncio.Event()

    @property
    def num_live(self) -> int:
        """Engine requests that have not ended."""
        return len(self._tickets)

    @property
    def is_healthy(self) -> bool:
        """Whether the engine lives: it loads, or it spoke lately."""
        if self.dead is not None:
            return False
        # Loading has no heartbeat; how long it may take is the start-up probe's business.
        return self.ready is None or self._clock() - self._heard_at <= self._silence_limit_s

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Serve one connection until it ends; return why. What that means, `die` is told by the caller."""
        self._writer = writer
        self._heard_at = self._clock()
        try:
            return await self._read(reader)
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> str:
        """Handle frames until there are no more; return why."""
        try:
            while True:
                size = frame_length(await reader.readexactly(HEADER_BYTES))
                if size > _MAX_FRAME_BYTES:
                    return f"the engine announced a frame of {size} bytes"
                self._handle(decode_event(await reader.readexactly(size)))
                if self.failed is not None:
                    return self.failed.message
        except (asyncio.IncompleteReadError, ConnectionError):
            return "its connection closed"
        except msgspec.DecodeError as error:
            return f"it sent a frame that cannot be read: {error}"

    def _handle(self, event: Event) -> None:
        self._heard_at = self._clock()
        match event:
            case EngineReady():
                self.ready = event
                self.is_ready.set()
            case EngineFailed():
                self.failed = event
            case _:
                self.stats = event.stats
                num_tokens = sum(self._route(output) for output in event.outputs)
                if num_tokens:
                    self.on_step(num_tokens)

    def _route(self, output: RequestOutput) -> int:
        """Hand an output to its ticket; return the tokens that it counts for, see on_step."""
        entry = self._tickets.get(output.request_id)
        if entry is None:
            return 0  # aborted here while the engine was computing it
        num_tokens = len(output.token_ids)
        if num_tokens and (num_prompt_tokens := self._prompts.pop(output.request_id, 0)):
            num_tokens += num_prompt_tokens - output.num_cached_tokens
        if output.finish_reason is not None:
            self._forget(output.request_id)
        ticket, index = entry
        ticket._deliver(index, output, self._heard_at)
        return num_tokens

    def submit(self, requests: Sequence[AddRequest]) -> Ticket:
        """Start generations; the ticket's indexes are positions in `requests`.

        Raises:
            EngineDead: there is no engine to send them to.
        """
        if self.dead is not None:
            raise self.dead
        if self._writer is None:
            raise EngineDead("it is not connected yet")
        if self._writer.is_closing():
            raise EngineDead("its connection closed")  # what else happened is found out at this moment
        ticket = Ticket(self, [request.request_id for request in requests])
        for index, request in enumerate(requests):
            self._tickets[request.request_id] = (ticket, index)
            self._prompts[request.request_id] = len(request.prompt_token_ids)
        self._writer.write(b"".join(encode_frame(request) for request in requests))
        return ticket

    def fail_all(self, error: StokerError) -> None:
        """End every ticket with an error and give its requests up."""
        for request_id, (ticket, _) in list(self._tickets.items()):
            ticket.fail(error)
            self._abort(request_id)

    def die(self, error: EngineDead) -> None:
        """Take note that the engine is gone: every open ticket fails. The first reason stands."""
        if self.dead is None:
            self.dead = error
            self.fail_all(error)
            self.is_dead.set()

    def shutdown(self) -> None:
        """Ask the engine to exit."""
        self._send(Shutdown())

    def _abort(self, request_id: str) -> None:
        if request_id in self._tickets:
            self._forget(request_id)
            self._send(AbortRequest(request_id=request_id))

    def _forget(self, request_id: str) -> None:
        del self._tickets[request_id]
        self._prompts.pop(request_id, None)

    def _send(self, command: AbortRequest | Shutdown) -> None:
        if self._writer is not None and self.dead is None and not self._writer.is_closing():
            self._writer.write(encode_frame(command))
