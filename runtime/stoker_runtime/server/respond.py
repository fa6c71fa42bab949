"""An answer on its way to a client: in one piece or as a stream, and given up when the client is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from stoker_runtime.errors import RequestError
from stoker_runtime.server.answer import Answer
from stoker_runtime.server.event_stream import EventStream, unless_gone
from stoker_runtime.server.generation import best_choices
from stoker_runtime.server.logprobs import PromptLogprobs
from stoker_runtime.server.problems import error_event, internal_error
from stoker_runtime.server.serving import Record
from stoker_runtime.server.wire import DONE, PromptPart, Shape

logger = logging.getLogger(__name__)


async def respond(
    request: Request,
    answer: Answer,
    shape: Shape,
    *,
    is_stream: bool,
    keep_alive_s: float,
) -> Response:
    """Return the response to an answer that was just started. Sees to it that the answer is closed.

    What can be refused has been: a stream begins at once, and a failure after that is its last event.

    Args:
        request: whose record is filled in.
        answer: from Serving.start.
        shape: how it is written.
        is_stream: as server-sent events.
        keep_alive_s: see EventStream.

    Raises:
        RequestError: the answer failed, and it is not a stream.
        ClientDisconnect: the client left before the answer was whole, where it is a stream before it began;
            it is given up.
    """
    record: Record = request.state.record
    record.is_stream = is_stream

    def end() -> None:
        answer.close()
        first_s = answer.first_token_s
        record.ttft_s = None if first_s is None else round(first_s - request.state.arrival_s, 4)
        record.usage = answer.usage
        record.finish_reasons = [choice.finish_reason or "abort" for choice in answer.choices]

    try:
        if not is_stream:
            body = await unless_gone(request.receive, _collect(answer, shape))
        elif await request.is_disconnected():
            raise ClientDisconnect  # a client that closed only its side can still read why it gets nothing
    except BaseException:
        end()
        raise
    if is_stream:
        return EventStream(_events(answer, shape, record), end, keep_alive_s=keep_alive_s)
    end()
    return Response(body, media_type="application/json")


async def _collect(answer: Answer, shape: Shape) -> bytes:
    """Return the body of an answer in one piece. What is long is written piece by piece, as it comes."""
    generation = answer.generation
    size = generation.num_candidates
    choices = [shape.begin() for _ in answer.choices]
    prompts = [PromptLogprobs(answer.token_bytes) for _ in generation.prompts]
    async for deltas in answer.deltas():
        for delta in deltas:
            choices[delta.index].add(delta)
            prompts[delta.index // size].add(delta.prompt_logprobs)
    parts = [
        PromptPart(token_ids, logprobs.json() if generation.shows_prompt_logprobs else None)
        for token_ids, logprobs in zip(generation.prompts, prompts, strict=True)
    ]
    chosen = best_choices([choice.mean_logprob for choice in answer.choices], generation.n, size)
    written = []
    for number, index in enumerate(chosen):
        written.append(shape.choice(number, choices[index], parts[index // size]))
        await asyncio.sleep(0)
    return shape.whole(written, parts, answer.usage)


async def _events(answer: Answer, shape: Shape, record: Record) -> AsyncGenerator[bytes]:
    """Yield the stream's bytes: what opens it, then one chunk per step, whatever the number of choices."""
    prompts, size = answer.generation.prompts, answer.generation.num_candidates
    try:
        for choice in answer.choices:
            if opening := shape.opening(choice.index, prompts[choice.index // size]):
                yield opening
        async for deltas in answer.deltas():
            if data := b"".join(shape.events(delta, prompts[delta.index // size]) for delta in deltas):
                yield data
        yield (shape.usage_event(answer.usage) if shape.options.include_usage else b"") + DONE
    except RequestError as error:
        record.error = error.code
        yield error_event(error)
    except Exception:
        # The status line is long gone: the stream's last event is where this failure can show.
        logger.exception("a stream failed")
        record.error = "internal_error"
        yield error_event(internal_error())
