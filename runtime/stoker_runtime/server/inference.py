"""The inference endpoints: a body becomes a generation, and its answer a response."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoker_runtime.errors import RequestError
from stoker_runtime.messages import EngineReady, SamplingParams
from stoker_runtime.server.body import read_body
from stoker_runtime.server.chat_options import chat_options, last_answer, without_quiet_hints
from stoker_runtime.server.generation import Generation
from stoker_runtime.server.prompt import ChatPrompt, TextRoom, check_length
from stoker_runtime.server.protocol import ChatBody, CompletionBody, SamplingBody, TokenizeBody
from stoker_runtime.server.respond import respond
from stoker_runtime.server.sampling import (
    bad_word_forms,
    chat_sampling,
    check_pickable,
    check_size,
    completion_sampling,
    truncated,
)
from stoker_runtime.server.serving import Record, Serving
from stoker_runtime.server.wire import AnswerOptions, ChatShape, CompletionShape, Head, Shape


async def complete(serving: Serving, request: Request) -> Response:
    """Answer POST /v1/completions."""
    body = await read_body(request, CompletionBody, serving.config.max_request_bytes)
    text, ready = _opened(serving, request, body)
    max_model_len = serving.max_model_len
    sampling = completion_sampling(body, text.assets.generation_defaults, ready.vocab_size, max_model_len)
    sampling = await _without_bad_words(sampling, body, text)
    check_pickable(sampling, ready.eos_token_ids)
    prompts = await _prompt_ids(text, body, max_model_len)
    for prompt in prompts:
        text.check_known(prompt, ready.vocab_size, "prompt")
        check_length(len(prompt), max_model_len, "prompt")
    shape = CompletionShape(
        _head(serving, "cmpl"),
        text.token_bytes,
        _answer_options(body, has_logprobs=sampling.logprobs is not None),
    )
    echo = await _prompt_texts(text, body, prompts) if body.echo else None
    generation = _generation(body, prompts, sampling, echo, drops_output=body.max_tokens == 0)
    return await _generate(serving, request, body, generation, shape)


async def chat(serving: Serving, request: Request) -> Response:
    """Answer POST /v1/chat/completions."""
    body = await read_body(request, ChatBody, serving.config.max_request_bytes)
    record: Record = request.state.record
    record.safety_identifier, record.prompt_cache_key = body.safety_identifier, body.prompt_cache_key
    text, ready = _opened(serving, request, body)
    max_model_len = serving.max_model_len
    sampling = chat_sampling(body, text.assets.generation_defaults, ready.vocab_size, max_model_len)
    sampling = await _without_bad_words(sampling, body, text)
    check_pickable(sampling, ready.eos_token_ids)
    prompt = await _chat_prompt(text, body, max_model_len, record)
    text.check_known(prompt.token_ids, ready.vocab_size, "messages")
    check_length(len(prompt.token_ids), max_model_len, "messages")
    shape = ChatShape(
        _head(serving, "chatcmpl"),
        text.token_bytes,
        _answer_options(body, has_logprobs=sampling.logprobs is not None),
    )
    echo = None
    if body.echo:
        echo = (prompt.prefix if chat_options(body).continue_final_message else last_answer(body.messages),)
    return await _generate(
        serving, request, body, _generation(body, [prompt.token_ids], sampling, echo), shape
    )


def _opened(serving: Serving, request: Request, body: SamplingBody) -> tuple[TextRoom, EngineReady]:
    record: Record = request.state.record
    record.user, record.metadata = body.user, body.metadata
    serving.check_model(body.model)
    return serving.loaded()


def _head(serving: Serving, kind: str) -> Head:
    return Head(f"{kind}-{uuid.uuid4().hex}", int(time.time()), serving.config.served_model_names[0])


def _answer_options(body: SamplingBody, *, has_logprobs: bool) -> AnswerOptions:
    stream = body.stream_options
    return AnswerOptions(
        has_logprobs=has_logprobs,
        include_usage=stream is not None and bool(stream.include_usage),
        continuous_usage=stream is not None and bool(stream.continuous_usage_stats),
        returns_token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
    )


async def _prompt_ids(text: TextRoom, body: CompletionBody, max_model_len: int) -> list[list[int]]:
    """Return the tokens of each prompt, those that are kept."""
    token_lists = [prompt for prompt in body.prompt if isinstance(prompt, list)]
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    most = max_model_len if body.truncate_prompt_tokens is None else None
    if body.suffix:
        if token_lists:
            raise RequestError(
                "`suffix` needs a prompt that is text, not token ids", param="suffix", code="invalid_value"
            )
        found = [await text.fim_ids(prompt, body.suffix, max_tokens=most) for prompt in texts]
    else:
        special = body.add_special_tokens is not False
        found = token_lists or await text.prompt_ids(texts, add_special_tokens=special, max_tokens=most)
    return [
        truncated(token_ids, body.truncate_prompt_tokens, body.max_tokens, max_model_len)
        for token_ids in found
    ]


async def _prompt_texts(
    text: TextRoom, body: CompletionBody, prompts: Sequence[list[int]]
) -> tuple[str, ...]:
    """Return what an answer echoes: the prompt as it was given, or the text of its tokens."""
    return tuple(
        [
            given
            if isinstance(given, str) and body.truncate_prompt_tokens is None
            else await text.text(token_ids)
            for given, token_ids in zip(body.prompt, prompts, strict=True)
        ]
    )


async def rendered(
    text: TextRoom, body: ChatBody | TokenizeBody, record: Record, max_tokens: int | None = None
) -> ChatPrompt:
    """Return a body's messages as the model reads them; the record notes what its template does not read.

    Raises:
        RequestError: see TextRoom.chat.
    """
    assert body.messages is not None
    options = chat_options(body)
    prompt = await text.chat(
        body.messages.messages,
        add_generation_prompt=options.add_generation_prompt,
        continue_final_message=options.continue_final_message,
        add_special_tokens=bool(body.add_special_tokens),
        extra=options.extra,
        max_tokens=max_tokens,
    )
    record.ignored += without_quiet_hints(body, prompt.ignored)
    return prompt


async def _chat_prompt(text: TextRoom, body: ChatBody, max_model_len: int, record: Record) -> ChatPrompt:
    most = max_model_len if body.truncate_prompt_tokens is None else None
    prompt = await rendered(text, body, record, most)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    token_ids = truncated(prompt.token_ids, body.truncate_prompt_tokens, asked, max_model_len)
    return replace(prompt, token_ids=token_ids)


async def _without_bad_words(sampling: SamplingParams, body: SamplingBody, text: TextRoom) -> SamplingParams:
    """Return the sampling with the tokens of the words that the answer must not have."""
    if not body.bad_words:
        return sampling
    forms = bad_word_forms(body.bad_words)
    found = await text.prompt_ids(forms, add_special_tokens=False)
    sequences = tuple(dict.fromkeys(tuple(token_ids) for token_ids in found if token_ids))
    return msgspec.structs.replace(sampling, bad_words_token_ids=sequences)


def _generation(
    body: SamplingBody,
    prompts: list[list[int]],
    sampling: SamplingParams,
    echo: tuple[str, ...] | None,
    *,
    drops_output: bool = False,
) -> Generation:
    return Generation(
        prompts=prompts,
        sampling=sampling,
        n=body.n or 1,
        best_of=body.best_of or 1,
        stop=body.stop,
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
        cache_salt=body.cache_salt or "",
        priority=body.priority or 0,
        echo=echo,
        echo_is_prompt=isinstance(body, CompletionBody),
        shows_prompt_logprobs=body.prompt_logprobs is not None,
        returns_token_ids=bool(body.return_token_ids),
        drops_output=drops_output,
    )


async def _generate(
    serving: Serving, request: Request, body: SamplingBody, generation: Generation, shape: Shape
) -> Response:
    longest = max(map(len, generation.prompts))
    check_size(
        generation.num_choices,
        generation.sampling,
        serving.max_model_len - longest,
        list(map(len, generation.prompts)),
        scored_by="logprobs" if body.prompt_logprobs is None else "prompt_logprobs",
    )
    answer = serving.start(generation, request.state.record, request.state.arrival_s)
    return await respond(
        request,
        answer,
        shape,
        is_stream=bool(body.stream),
        keep_alive_s=serving.config.sse_keep_alive_s,
    )
