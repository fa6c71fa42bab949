"""The whole runtime: the command line, both processes, and the example model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from server_builders import smollm2_path
from server_process import DEADLINE_S, ServerProcess, running_process

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

CAPITAL = "What is the capital of France? Answer in one word."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[ServerProcess, httpx2.AsyncClient]]:
    flags = [
        "--model",
        str(smollm2_path()),
        "--served-model-name",
        "smollm2",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
    ]
    limits = ["--max-model-len", "1024", "--shutdown-delay-s", "0", "--dtype", "float32"]
    limits += [
        "--num-threads",
        "1",
    ]  # two would wait for each other whenever something else runs beside the tests
    command = ["-m", "stoker_runtime", "serve", *flags, *limits]
    async with running_process(command, tmp_path_factory.mktemp("runtime")) as running:
        await running[0].until_logged("ready")
        yield running
        running[0].terminate()
        assert await running[0].until_ended() == 0


@pytest_asyncio.fixture(loop_scope="module")
async def client(server: tuple[ServerProcess, httpx2.AsyncClient]) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{server[1].base_url}/v1", api_key="unused", max_retries=0, timeout=DEADLINE_S
    ) as client:
        yield client


async def ask(client: AsyncOpenAI, text: str, max_tokens: int = 16) -> str:
    answer = await client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": text}],
        temperature=0,
        max_completion_tokens=max_tokens,
    )
    return answer.choices[0].message.content or ""


async def test_it_knows_the_capital_of_france(client: AsyncOpenAI) -> None:
    assert "Paris" in await ask(client, CAPITAL)


async def test_a_stream_says_what_the_whole_answer_says(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Count in emoji: \U0001f600"}],
        temperature=0,
        max_completion_tokens=24,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert len(pieces) > 5
    assert "".join(pieces) == await ask(client, "Count in emoji: \U0001f600", 24)


async def test_answers_do_not_depend_on_what_else_is_in_the_batch(client: AsyncOpenAI) -> None:
    questions = [f"Say something about the number {number}." for number in range(6)]
    alone = [await ask(client, question) for question in questions[:2]]

    together = await asyncio.gather(*(ask(client, question) for question in questions))

    assert together[:2] == alone


async def test_a_seed_repeats_and_choices_differ(client: AsyncOpenAI) -> None:
    async def draw() -> list[str]:
        answer = await client.completions.create(
            model="smollm2", prompt="Once upon a time", n=2, seed=7, temperature=1.0, max_tokens=12
        )
        return [choice.text for choice in answer.choices]

    first, second = await draw(), await draw()

    assert first == second
    assert first[0] != first[1]


async def test_log_probabilities_are_probabilities(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="smollm2", prompt="The capital of France is", max_tokens=3, temperature=0, logprobs=3
    )

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True):
        assert max(top, key=lambda name: top[name]) == token
        assert all(value <= 0 for value in top.values())


async def test_a_repeated_prompt_is_found_in_the_prefix_cache(client: AsyncOpenAI) -> None:
    cached = []
    for _ in range(2):
        answer = await client.completions.create(
            model="smollm2", prompt="Tell me about the sea. " * 10, max_tokens=1
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)

    assert cached[0] < 48 <= cached[1]


async def test_a_client_that_leaves_frees_the_kv_cache(
    client: AsyncOpenAI, server: tuple[ServerProcess, httpx2.AsyncClient]
) -> None:
    stream = await client.completions.create(
        model="smollm2", prompt="Once", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(stream)
    await stream.close()

    # The engine frees the blocks first and the front end counts the request as answered after it,
    # so both are waited for.
    usage = 'vllm:kv_cache_usage_perc{engine="0",model_name="smollm2"} '
    usage_in_use, in_flight = "", -1
    pause = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S):
        while (usage_in_use, in_flight) != ("0.0", 0):
            metrics = (await server[1].get("/metrics")).text
            usage_in_use = metrics.partition(usage)[2].partition("\n")[0]
            in_flight = (await server[1].get("/load")).json()["in_flight"]
            try:
                await asyncio.wait_for(pause.wait(), 0.05)
            except TimeoutError:
                continue


async def test_extreme_sampling_values_leave_the_engine_alive(
    client: AsyncOpenAI, server: tuple[ServerProcess, httpx2.AsyncClient]
) -> None:
    extremes: list[dict[str, object]] = [
        {"temperature": 1e-300},
        {"temperature": 2, "top_p": 1e-300, "top_k": 1, "min_p": 1},
        {"repetition_penalty": 0.01, "presence_penalty": 2, "frequency_penalty": 2},
        {"repetition_penalty": 100, "presence_penalty": -2, "frequency_penalty": -2},
        {"logit_bias": {str(token): -100 for token in range(1000)}, "seed": -(2**63)},
        {"stop_token_ids": list(range(128)), "min_tokens": 4, "logprobs": 20},
        {"top_k": 2**31 - 1, "min_p": 0, "top_p": 1},
    ]
    for fields in extremes:
        response = await server[1].post(
            "/v1/completions", json={"model": "smollm2", "prompt": "The", "max_tokens": 4, **fields}
        )
        assert response.status_code == 200, (fields, response.text)

    assert (await server[1].get("/health")).status_code == 200
    assert "Paris" in await ask(client, CAPITAL)
