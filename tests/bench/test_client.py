"""The client against a scripted server on loopback: every way an answer can go wrong has its own reason."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from gguf import GGUFReader

from loadgen import client
from loadgen.client import Target
from loadgen.models import smollm2
from loadgen.prompts import WORDS, prompt
from loadgen.results import Outcome
from loadgen.run import Load, run

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def event(payload: object) -> bytes:
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"


def text_event(text: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})


def usage_event(num_tokens: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": num_tokens}})


def streams(*events: bytes, abort: bool = False) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in events:
            await response.write(piece)
        if abort:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handle


def answers(status: int, text: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    return handle


GOOD = (text_event("a"), text_event("b", "length"), usage_event(2), event(b"[DONE]"))


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/{api:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def send_one(url: str, **fields: object) -> Outcome:
    target = Target(url, "m", **{"output_tokens": 2, "timeout_s": 10.0, **fields})  # type: ignore[arg-type]
    async with client.session(keep_alive=False) as http:
        return await client.send(http, target, "hello", 5, time.perf_counter())


async def test_a_whole_stream_is_timed_and_counted() -> None:
    async with server(streams(*GOOD)) as url:
        outcome = await send_one(url)
    assert (outcome.failure, outcome.detail) == (None, "")
    assert (outcome.index, outcome.prompt_tokens, outcome.output_tokens) == (5, 3, 2)
    assert outcome.ttft_s is not None
    assert 0 < outcome.ttft_s <= outcome.e2e_s
    assert len(outcome.itl_s) == 1


async def test_a_chat_answer_without_streaming_counts_and_has_no_time_to_first_token() -> None:
    message = {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "length"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    async with server(answers(200, json.dumps({"choices": [message], "usage": usage}))) as url:
        outcome = await send_one(url, api="chat", stream=False)
    assert (outcome.failure, outcome.output_tokens, outcome.ttft_s) == (None, 2, None)


@pytest.mark.parametrize(
    ("handler", "failure", "detail"),
    [
        pytest.param(answers(503, "draining"), "http_503", "draining", id="status"),
        pytest.param(streams(*GOOD[:3]), "cut_stream", "after 2 pieces", id="no-done"),
        pytest.param(streams(*GOOD[:1], abort=True), "cut_stream", "", id="reset-in-mid-stream"),
        pytest.param(streams(abort=True), "disconnected", "", id="reset-before-text"),
        pytest.param(
            streams(*GOOD[:1], event({"error": {"message": "engine died"}})),
            "error_event",
            "died",
            id="error",
        ),
        pytest.param(
            streams(text_event("a"), usage_event(2), event(b"[DONE]")),
            "no_finish_reason",
            "",
            id="no-finish-reason",
        ),
        pytest.param(streams(*GOOD[:2], event(b"[DONE]")), "no_usage", "", id="no-usage"),
        pytest.param(
            streams(*GOOD[:2], usage_event(1), event(b"[DONE]")),
            "wrong_length",
            "1 output tokens",
            id="too-short",
        ),
        pytest.param(streams(event(b"{not json")), "bad_body", "JSON", id="bad-json"),
    ],
)
async def test_each_fault_has_its_reason(handler: Handler, failure: str, detail: str) -> None:
    async with server(handler) as url:
        outcome = await send_one(url)
    assert outcome.failure == failure
    assert detail in outcome.detail


async def test_an_answer_that_never_comes_is_a_timeout() -> None:
    told_to_end = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        await told_to_end.wait()
        return web.Response()

    async with server(handle) as url:
        outcome = await send_one(url, timeout_s=0.05)
        told_to_end.set()
    assert outcome.failure == "timeout"


async def test_a_closed_port_is_a_connect_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        outcome = await send_one(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert outcome.failure == "connect"


def test_the_request_asks_for_usage_and_exact_length() -> None:
    assert client.body(Target("http://x", "m", output_tokens=7), "p") == {
        "model": "m",
        "prompt": "p",
        "max_tokens": 7,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    chat = client.body(Target("http://x", "m", api="chat", stream=False, ignore_eos=False), "p")
    assert chat["messages"] == [{"role": "user", "content": "p"}]
    assert not {"stream_options", "ignore_eos", "prompt"} & chat.keys()


async def test_a_closed_loop_keeps_its_concurrency_and_uses_new_connections() -> None:
    in_flight, peers, peak = 0, set(), 0
    full = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal in_flight, peak
        in_flight += 1
        peak = max(peak, in_flight)
        peers.add(request.transport.get_extra_info("peername"))  # type: ignore[union-attr]
        if in_flight == 3:
            full.set()
        await full.wait()
        in_flight -= 1
        return await streams(*GOOD)(request)

    async with server(handle) as url:
        done = await run(Target(url, "m", output_tokens=2), Load(num_requests=12, concurrency=3))
    assert (done.summary.requests, done.summary.succeeded, peak) == (12, 12, 3)
    assert len(peers) == 12
    assert sorted(outcome.index for outcome in done.outcomes) == list(range(12))


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    arrived, all_arrived = 0, asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal arrived
        arrived += 1
        if arrived == 10:
            all_arrived.set()
        await all_arrived.wait()
        return await streams(*GOOD)(request)

    async with server(handle) as url:
        load = Load(num_requests=10, rate_per_s=500.0)
        done = await run(Target(url, "m", output_tokens=2, timeout_s=20.0), load)
    assert done.summary.succeeded == 10


@pytest.mark.parametrize("load", [Load(concurrency=2), Load(rate_per_s=200.0)], ids=["closed", "open"])
async def test_stop_starts_no_further_request_and_awaits_those_in_flight(load: Load) -> None:
    stop = asyncio.Event()
    num_seen = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal num_seen
        num_seen += 1
        if num_seen == 5:
            stop.set()
        return await streams(*GOOD)(request)

    async with server(handle) as url:
        done = await asyncio.wait_for(run(Target(url, "m", output_tokens=2), load, stop), 20)
    assert done.summary.succeeded == done.summary.requests == num_seen >= 5


def test_prompts_have_their_length_and_differ_by_index() -> None:
    assert len(prompt(64, 0, 1).split()) == 64
    assert prompt(64, 0, 1) == prompt(64, 0, 1)
    assert prompt(64, 0, 1) != prompt(64, 0, 2)
    assert len(set(WORDS)) == len(WORDS)


def test_every_word_is_one_token_of_smollm2() -> None:
    fields = GGUFReader(smollm2()).fields["tokenizer.ggml.tokens"]
    vocabulary = {bytes(fields.parts[at]).decode() for at in fields.data}
    assert {f"Ġ{word}" for word in WORDS} <= vocabulary
