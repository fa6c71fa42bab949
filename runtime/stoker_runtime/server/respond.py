"""An answer on its way to a client: in one piece or as a stream, and given up when the client is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from stoker_runtime.errors import RequestError
from stoker_runtime.server.generation import Delta, WholeChoice
from stoker_runtime.server.problems import error_event, internal_error
from stoker_runtime.server.serving import Answer, Record
from stoker_runtime.server.wire import DONE, Shape

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


async def respond(
    request: Request, answer: Answer, shape: Shape, *, is_stream: bool, include_usage: bool
) -> Response:
    """Return the response to an answer that was just started. Sees to it that the answer is closed.

    A stream's status is decided by its first tokens, so a failure before them is an ordinary error response.

    Raises:
        RequestError: the answer failed before its first tokens, or anywhere when it is not a stream.
        ClientDisconnect: the client left; the answer is given up.
    """
    record: Record = request.state.record
    record.is_stream = is_stream
    if not is_stream:
        try:
            body = await _unless_gone(request, _collect(answer, shape))
        finally:
            answer.close()
            answer.describe(record, request.state.arrival_s)
        return Response(body, media_type="application/json")
    steps = answer.deltas()

    def end() -> None:
        answer.close()
        answer.describe(record, request.state.arrival_s)

    try:
        first = await _unless_gone(request, anext(steps))
    except BaseException:
        end()
        raise
    return _EventStream(_events(answer, shape, first, steps, record, include_usage), end)


async def _collect(answer: Answer, shape: Shape) -> bytes:
    choices = [WholeChoice(choice.index) for choice in answer.choices]
    async for deltas in answer.deltas():
        for delta in deltas:
            choices[delta.index].add(delta)
    return shape.whole(choices, answer.usage)


async def _events(
    answer: Answer,
    shape: Shape,
    first: list[Delta],
    steps: AsyncIterator[list[Delta]],
    record: Record,
    include_usage: bool,
) -> AsyncGenerator[bytes]:
    """Yield the stream's bytes; one chunk per step, whatever the number of choices."""
    opened: set[int] = set()

    def chunk(deltas: list[Delta]) -> bytes:
        parts = []
        for delta in deltas:
            if delta.index not in opened:
                opened.add(delta.index)
                parts.append(shape.opening(delta.index))
            parts.append(shape.events(delta))
        return b"".join(parts)

    try:
        if data := chunk(first):
            yield data
        async for deltas in steps:
            if data := chunk(deltas):
                yield data
        yield (shape.usage_event(answer.usage) if include_usage else b"") + DONE
    except RequestError as error:
        record.error = error.code
        yield error_event(error)
    except Exception:
        # The status line is long gone: the stream's last event is where this failure can show.
        logger.exception("a stream failed")
        record.error = "internal_error"
        yield error_event(internal_error())


class _EventStream(StreamingResponse):
    """Server-sent events; calls `on_end` however it ends, also when the client left before the first byte."""

    body_iterator: AsyncGenerator[bytes]

    def __init__(self, events: AsyncGenerator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self.body_iterator):
                await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _unless_gone(request: Request, work: Awaitable[ResultT]) -> ResultT:
    """Return what the work gives, unless the client leaves before: then the work is cancelled.

    Raises:
        ClientDisconnect: the client left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _wait_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
