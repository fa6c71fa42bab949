"""Streams on their way: begun at once, kept alive while nothing comes, whole for line readers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI
from server_engine import DEADLINE_S, FakeEngine, listening, make_server_config, running_stack
from starlette.types import Message, Receive, Send
from virtual_time import pass_time, run_virtual

from stoker_runtime.errors import EngineDead
from stoker_runtime.server.event_stream import KEEP_ALIVE, EventStream
from stoker_runtime.server.json_text import to_json

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "a", "stream": True}
# All that Python's str.splitlines takes for the end of a line.
LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


async def never_gone() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def events_at(*times_s: float) -> AsyncGenerator[bytes]:
    """Yield an event at each of these times."""
    loop = asyncio.get_running_loop()
    for at_s in times_s:
        await pass_time(at_s - loop.time())
        yield b"event"


def sent(
    events: AsyncGenerator[bytes],
    *,
    keep_alive_s: float,
    receive: Receive = never_gone,
    sending: Callable[[], Awaitable[None]] | None = None,
) -> list[tuple[float, bytes]]:
    """Run a stream to its end in virtual time; return when each part of its body was sent."""
    parts: list[tuple[float, bytes]] = []
    ended = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            parts.append((asyncio.get_running_loop().time(), message["body"]))
            if sending is not None:
                await sending()

    async def run() -> None:
        await EventStream(events, lambda: ended.append(True), keep_alive_s=keep_alive_s)({}, receive, send)

    run_virtual(run())
    assert ended == [True]
    return parts


def test_a_comment_comes_whenever_nothing_else_did_for_so_long() -> None:
    assert sent(events_at(25, 34, 44.5), keep_alive_s=10) == [
        (10, KEEP_ALIVE),
        (20, KEEP_ALIVE),
        (25, b"event"),
        (34, b"event"),
        (44, KEEP_ALIVE),
        (44.5, b"event"),
        (44.5, b""),
    ]


def test_comments_can_be_turned_off() -> None:
    assert sent(events_at(1000), keep_alive_s=0) == [(1000, b"event"), (1000, b"")]


def test_a_client_that_does_not_read_gets_no_comments() -> None:
    parts = sent(events_at(1), keep_alive_s=10, sending=lambda: pass_time(95))

    assert [data for _, data in parts] == [b"event", b""]


def test_a_client_that_leaves_ends_its_stream_at_once() -> None:
    closed_at = []

    async def endless() -> AsyncGenerator[bytes]:
        try:
            yield b"event"
            await asyncio.Event().wait()
        finally:
            closed_at.append(asyncio.get_running_loop().time())

    async def gone() -> Message:
        await pass_time(12)
        return {"type": "http.disconnect"}

    assert sent(endless(), keep_alive_s=10, receive=gone) == [(0, b"event"), (10, KEEP_ALIVE)]
    assert closed_at == [12]


def test_a_failure_to_send_is_not_swallowed() -> None:
    async def send(message: Message) -> None:
        if message.get("body") == KEEP_ALIVE:
            raise OSError("broken pipe")

    async def run(send: Send) -> None:
        await EventStream(events_at(100), lambda: None, keep_alive_s=10)({}, never_gone, send)

    with pytest.raises(ExceptionGroup, match="unhandled errors") as caught:
        run_virtual(run(send))
    assert caught.group_contains(OSError, match="broken pipe")


def held_engine() -> FakeEngine:
    """An engine that computes nothing yet."""
    engine = FakeEngine()
    engine.may_step.clear()
    return engine


@pytest.mark.parametrize(
    ("path", "body", "opening"),
    [
        pytest.param("/v1/chat/completions", CHAT, b'"role":"assistant"', id="chat"),
        pytest.param("/v1/completions", COMPLETION, b"", id="completions"),
    ],
)
async def test_head_and_opening_come_before_anything_is_computed(
    path: str, body: dict[str, Any], opening: bytes
) -> None:
    engine = held_engine()
    async with running_stack(engine) as stack, listening(stack) as url:
        async with asked(url, path, body) as reader:
            head = await reader.readuntil(b"\r\n\r\n")
            if opening:
                await reader.readuntil(opening)
            assert len(engine.added) == 1
        await engine.until(lambda: len(engine.aborted) == 1)

    assert head.startswith(b"HTTP/1.1 200 ")
    for header in (b"content-type: text/event-stream", b"cache-control: no-cache", b"x-accel-buffering: no"):
        assert header in head


@asynccontextmanager
async def asked(url: str, path: str, body: dict[str, Any]) -> AsyncIterator[asyncio.StreamReader]:
    """Send a request over a bare connection; leaving the block closes it."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        )
        yield reader
        writer.close()


async def test_what_can_be_refused_before_is_an_ordinary_status() -> None:
    engine = FakeEngine(max_running=1)
    engine.may_step.clear()
    async with running_stack(engine, config=make_server_config(max_queue=1)) as stack:
        too_long = await stack.http.post("/v1/completions", json={**COMPLETION, "prompt": "x" * 300})
        unknown = await stack.http.post("/v1/completions", json={**COMPLETION, "model": "x"})
        too_many = await stack.http.post("/v1/completions", json={**COMPLETION, "n": 3})
        stack.serving.is_closed = True
        closed = await stack.http.post("/v1/completions", json=COMPLETION)

    statuses = [answer.status_code for answer in (too_long, unknown, too_many, closed)]
    assert statuses == [400, 404, 400, 503]
    assert engine.added == []


async def test_an_engine_that_dies_before_the_first_token_is_the_streams_error_event() -> None:
    engine = held_engine()
    async with running_stack(engine) as stack:
        asking = asyncio.create_task(stack.http.post("/v1/chat/completions", json=CHAT))
        await engine.until(lambda: len(engine.added) == 1)
        stack.serving.client.die(EngineDead("it exploded"))
        response = await asking

    assert response.status_code == 200
    opening, error, nothing = response.text.split("\n\n")
    assert '"role":"assistant"' in opening
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert nothing == ""


async def test_openais_client_skips_comments() -> None:
    engine = held_engine()
    config = make_server_config(sse_keep_alive_s=0.01)
    async with running_stack(engine, config=config) as stack, listening(stack) as url:
        stack.say("ab")
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            chunks = [await anext(stream)]
            async with asked(url, "/v1/completions", COMPLETION) as reader:  # its comment comes later
                await reader.readuntil(KEEP_ALIVE)
            engine.may_step.set()
            chunks += [chunk async for chunk in stream]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "ab"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_readers_that_split_at_any_line_end_get_each_event_whole(is_stream: bool) -> None:
    text = "".join(f"a{char}" for char in LINE_ENDS)
    async with running_stack() as stack:
        stack.say(text)
        body = {**CHAT, "stream": is_stream, "stop": ["\u2028\u2028"], "logprobs": True}
        response = await stack.http.post("/v1/chat/completions", json=body)

    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    answers = [json.loads(line) for line in lines if line != "[DONE]"]
    choices = [choice for answer in answers for choice in answer["choices"]]
    assert "".join(c.get("delta", c.get("message")).get("content", "") for c in choices) == text
    assert len(lines) > len(text) if is_stream else len(lines) == 1


@pytest.mark.parametrize("char", [chr(code) for code in (*range(0x20), 0x7F, 0x85, 0xA0, 0x2028, 0x2029)])
def test_no_character_of_json_ends_a_line(char: str) -> None:
    for value in (char, f"a{char}b", {char: [f"\u4e2d{char}{char}"]}):
        data = to_json(value)
        assert len(data.decode().splitlines()) == 1
        assert json.loads(data) == value
