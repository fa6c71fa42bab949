"""The inference endpoints: a body becomes a generation, and its answer a response."""

from __future__ import annotations

import time
import uuid

from starlette.requests import Request
from starlette.responses import Response

from stoker_runtime.messages import EngineReady, SamplingParams
from stoker_runtime.server.body import read_body
from stoker_runtime.server.generation import Generation
from stoker_runtime.server.prompt import TextRoom, check_length
from stoker_runtime.server.protocol import ChatBody, CompletionBody, SamplingBody
from stoker_runtime.server.respond import respond
from stoker_runtime.server.sampling import chat_sampling, check_room, check_size, completion_sampling
from stoker_runtime.server.serving import Record, Serving
from stoker_runtime.server.wire import AnswerOptions, ChatShape, CompletionShape, Head, Shape


async def complete(serving: Serving, request: Request) -> Response:
    """Answer POST /v1/completions."""
    body = await read_body(request, CompletionBody, serving.config.max_request_bytes)
    text, ready = _opened(serving, request, body)
    sampling = completion_sampling(body, text.assets.generation_defaults, ready.vocab_size)
    prompts = await _prompt_ids(text, body.prompt, ready.vocab_size, serving.max_model_len)
    for prompt in prompts:
        check_length(len(prompt), serving.max_model_len, "prompt")
    shape = CompletionShape(
        _head(serving, "cmpl"),
        text.token_bytes,
        AnswerOptions(has_logprobs=body.logprobs is not None, include_usage=_include_usage(body)),
    )
    return await _generate(serving, request, body, _generation(body, prompts, sampling), shape)


async def chat(serving: Serving, request: Request) -> Response:
    """Answer POST /v1/chat/completions."""
    body = await read_body(request, ChatBody, serving.config.max_request_bytes)
    record: Record = request.state.record
    record.safety_identifier, record.prompt_cache_key = body.safety_identifier, body.prompt_cache_key
    text, ready = _opened(serving, request, body)
    sampling = chat_sampling(body, text.assets.generation_defaults, ready.vocab_size, serving.max_model_len)
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    chat = await text.chat(messages, extra=body.chat_template_kwargs, max_tokens=serving.max_model_len)
    prompt = chat.token_ids
    text.check_known(prompt, ready.vocab_size, "messages")
    check_length(len(prompt), serving.max_model_len, "messages")
    shape = ChatShape(
        _head(serving, "chatcmpl"),
        text.token_bytes,
        AnswerOptions(has_logprobs=bool(body.logprobs), include_usage=_include_usage(body)),
    )
    return await _generate(serving, request, body, _generation(body, [prompt], sampling), shape)


def _opened(serving: Serving, request: Request, body: SamplingBody) -> tuple[TextRoom, EngineReady]:
    record: Record = request.state.record
    record.user, record.metadata = body.user, body.metadata
    serving.check_model(body.model)
    return serving.loaded()


def _head(serving: Serving, kind: str) -> Head:
    return Head(f"{kind}-{uuid.uuid4().hex}", int(time.time()), serving.config.served_model_names[0])


def _include_usage(body: SamplingBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


async def _prompt_ids(
    text: TextRoom, prompts: list[str] | list[list[int]], vocab_size: int, max_model_len: int
) -> list[list[int]]:
    """Return the tokens of each prompt."""
    token_lists = [prompt for prompt in prompts if isinstance(prompt, list)]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    found = token_lists or await text.prompt_ids(texts, max_tokens=max_model_len)
    for token_ids in found:
        text.check_known(token_ids, vocab_size, "prompt")
    return found


def _generation(body: SamplingBody, prompts: list[list[int]], sampling: SamplingParams) -> Generation:
    return Generation(
        prompts=prompts,
        sampling=sampling,
        n=body.n or 1,
        stop=body.stop,
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
        cache_salt=body.cache_salt or "",
        priority=body.priority or 0,
    )


async def _generate(
    serving: Serving, request: Request, body: SamplingBody, generation: Generation, shape: Shape
) -> Response:
    longest = max(map(len, generation.prompts))
    check_room(body, longest, serving.max_model_len)
    check_size(generation.num_choices, generation.sampling, serving.max_model_len - longest)
    answer = serving.start(generation, request.state.record, request.state.arrival_s)
    return await respond(
        request,
        answer,
        shape,
        is_stream=bool(body.stream),
        keep_alive_s=serving.config.sse_keep_alive_s,
    )
