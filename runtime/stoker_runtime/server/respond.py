"""An answer on its way to a client: in one piece or as a stream, and given up when the client is gone."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from stoker_runtime.errors import RequestError
from stoker_runtime.server.event_stream import EventStream, unless_gone
from stoker_runtime.server.generation import WholeChoice
from stoker_runtime.server.problems import error_event, internal_error
from stoker_runtime.server.serving import Answer, Record
from stoker_runtime.server.wire import DONE, Shape

logger = logging.getLogger(__name__)


async def respond(
    request: Request,
    answer: Answer,
    shape: Shape,
    *,
    is_stream: bool,
    include_usage: bool,
    keep_alive_s: float,
) -> Response:
    """Return the response to an answer that was just started. Sees to it that the answer is closed.

    What can be refused has been: a stream begins at once, and a failure after that is its last event.

    Args:
        request: whose record is filled in.
        answer: from Serving.start.
        shape: how it is written.
        is_stream: as server-sent events.
        include_usage: the last of them tells the usage.
        keep_alive_s: see EventStream.

    Raises:
        RequestError: the answer failed, and it is not a stream.
        ClientDisconnect: the client left before the answer was whole; it is given up.
    """
    record: Record = request.state.record
    record.is_stream = is_stream

    def end() -> None:
        answer.close()
        answer.describe(record, request.state.arrival_s)

    if is_stream:
        events = _events(answer, shape, record, include_usage)
        return EventStream(events, end, keep_alive_s=keep_alive_s)
    try:
        body = await unless_gone(request.receive, _collect(answer, shape))
    finally:
        end()
    return Response(body, media_type="application/json")


async def _collect(answer: Answer, shape: Shape) -> bytes:
    choices = [WholeChoice(choice.index) for choice in answer.choices]
    async for deltas in answer.deltas():
        for delta in deltas:
            choices[delta.index].add(delta)
    return shape.whole(choices, answer.usage)


async def _events(answer: Answer, shape: Shape, record: Record, include_usage: bool) -> AsyncGenerator[bytes]:
    """Yield the stream's bytes: what opens it, then one chunk per step, whatever the number of choices."""
    try:
        if opening := b"".join(shape.opening(choice.index) for choice in answer.choices):
            yield opening
        async for deltas in answer.deltas():
            if data := b"".join(map(shape.events, deltas)):
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
