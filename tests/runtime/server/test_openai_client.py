"""The official client against a real listener: what people's programs will do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest
from openai import AsyncOpenAI
from runtime_builders import make_sampling
from server_engine import FakeEngine, Stack, listening, make_server_config, running_stack

from stoker_runtime.config import ServerConfig
from stoker_runtime.server.generation import Generation
from stoker_runtime.server.serving import Record

HELD = Generation(prompts=[[1]], sampling=make_sampling())
HELLO = "Hello w\u00f6rld \U0001f600"


@asynccontextmanager
async def serving(
    engine: FakeEngine | None = None, config: ServerConfig | None = None
) -> AsyncIterator[tuple[AsyncOpenAI, Stack]]:
    async with (
        running_stack(engine, config=config) as stack,
        listening(stack) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client, stack


async def test_chat() -> None:
    async with serving() as (client, stack):
        stack.say(HELLO)

        answer = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=100, seed=1
        )

    assert answer.choices[0].message.content == HELLO
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens // 2


async def test_chat_as_a_stream_with_usage() -> None:
    async with serving() as (client, stack):
        stack.say(HELLO)

        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]

    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == HELLO
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None


async def test_chat_with_several_choices_and_log_probabilities() -> None:
    async with serving() as (client, stack):
        stack.say("one", "two")

        answer = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            n=2,
            logprobs=True,
            top_logprobs=2,
            stop=["!"],
            logit_bias={"5": -100},
            presence_penalty=0.1,
            frequency_penalty=0.1,
            extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 1},
        )

    assert [choice.message.content for choice in answer.choices] == ["one", "two"]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert "".join(entry.token for entry in answer.choices[0].logprobs.content) == "one"
    assert stack.engine.added[0].sampling.top_k == 5


async def test_completions_of_several_prompts() -> None:
    async with serving() as (client, _):
        answer = await client.completions.create(model="tiny", prompt=["abc", "de"], logprobs=1)

    assert [choice.text for choice in answer.choices] == ["abc", "de"]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.text_offset == [0, 1, 2]


async def test_a_completion_as_a_stream() -> None:
    async with serving() as (client, stack):
        stack.say(HELLO)

        stream = await client.completions.create(model="tiny", prompt="a", max_tokens=50, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])

    assert text == HELLO


async def test_models() -> None:
    async with serving() as (client, _):
        listed = await client.models.list()
        model = await client.models.retrieve("tiny")

    assert [card.id for card in listed.data] == ["tiny"]
    assert model.owned_by == "stoker"


async def test_errors_are_the_clients_own_exceptions() -> None:
    async with serving() as (client, _):
        with pytest.raises(openai.NotFoundError) as wrong_model:
            await client.completions.create(model="gpt-4", prompt="a")
        with pytest.raises(openai.BadRequestError) as too_long:
            await client.completions.create(model="tiny", prompt="a" * 256)
        with pytest.raises(openai.BadRequestError) as unsupported:
            await client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "hi"}],
                response_format={"type": "json_object"},
            )

    assert wrong_model.value.code == "model_not_found"
    assert too_long.value.code == "context_length_exceeded"
    assert unsupported.value.param == "response_format"


async def test_a_full_queue_is_a_rate_limit() -> None:
    engine = FakeEngine(max_running=1)
    engine.may_step.clear()
    async with serving(engine, make_server_config(max_queue=1)) as (client, stack):
        with pytest.raises(openai.BadRequestError):
            await client.completions.create(model="tiny", prompt=["a", "b", "c"])
        held = [stack.serving.start(HELD, Record("held"), 0.0) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(model="tiny", prompt="a")
        for answer in held:
            answer.close()

    assert caught.value.code == "queue_full"
    assert caught.value.response.headers["retry-after"] == "1"


async def test_an_engine_that_dies_ends_a_stream_with_an_error() -> None:
    engine = FakeEngine(reply=lambda request: [65] * 100)
    async with serving(engine) as (client, stack):
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        await anext(stream)
        engine.close()
        with pytest.raises(openai.APIError, match="the engine stopped"):
            async for _ in stream:
                pass
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model="tiny", prompt="a")

    assert caught.value.status_code == 503
    assert stack.serving.in_flight == 0
