"""Clients that leave: their engine requests are aborted, whatever they were waiting for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from server_engine import DEADLINE_S, FakeEngine, Stack, listening, running_stack, until

BODIES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 200},
}


@asynccontextmanager
async def raw_request(url: str, path: str, **fields: object) -> AsyncIterator[asyncio.StreamReader]:
    """Send a request over a bare connection; leaving the block closes it."""
    body = json.dumps({**BODIES[path], **fields}).encode()
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        yield reader
    finally:
        writer.close()


def make_endless_engine() -> FakeEngine:
    """Answers never end by themselves within a test, and each step waits for the test's leave."""
    engine = FakeEngine(reply=lambda request: [65] * 10_000)
    engine.may_step.clear()
    return engine


async def check_given_up(stack: Stack, num_requests: int) -> None:
    await stack.engine.until(lambda: len(stack.engine.aborted) == num_requests)
    assert stack.engine.num_live == 0
    await until(lambda: stack.serving.in_flight == 0)
    assert stack.serving.client.num_live == 0
    aborted = 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"}'
    assert f"{aborted} {float(num_requests)}" in (await stack.http.get("/metrics")).text


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "num_requests"), [("/v1/chat/completions", 3), ("/v1/completions", 6)])
async def test_a_client_that_leaves_before_the_first_token(
    path: str, num_requests: int, is_stream: bool
) -> None:
    engine = make_endless_engine()
    async with running_stack(engine) as stack, listening(stack) as url:
        async with raw_request(url, path, n=3, stream=is_stream):
            await engine.until(lambda: len(engine.added) == num_requests)
            assert stack.serving.in_flight == 1

        await check_given_up(stack, num_requests)


async def test_a_client_that_leaves_in_the_middle_of_a_stream() -> None:
    engine = make_endless_engine()
    async with running_stack(engine) as stack, listening(stack) as url:
        async with raw_request(url, "/v1/chat/completions", stream=True) as reader:
            await engine.until(lambda: len(engine.added) == 1)
            engine.may_step.set()
            async with asyncio.timeout(DEADLINE_S):
                await reader.readuntil(b'"content":"b"')
            engine.may_step.clear()

        await check_given_up(stack, 1)


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten() -> None:
    async with running_stack() as stack, listening(stack) as url:
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await until(lambda: stack.serving.in_flight == 1)
        writer.close()
        await until(lambda: stack.serving.in_flight == 0)

        assert stack.engine.added == []


async def test_a_client_that_reads_nothing_does_not_hold_the_engine() -> None:
    engine = FakeEngine(reply=lambda request: [65] * 200)
    async with running_stack(engine) as stack, listening(stack) as url:
        async with raw_request(url, "/v1/completions", stream=True, logprobs=20):
            await engine.until(lambda: len(engine.added) == 2 and engine.num_live == 0)
        await until(lambda: stack.serving.in_flight == 0)


async def test_a_stream_whose_client_left_before_its_first_byte_is_closed() -> None:
    engine = FakeEngine(reply=lambda request: [65] * 10_000)
    async with running_stack(engine) as stack:
        body = json.dumps({**BODIES["/v1/completions"], "stream": True}).encode()
        is_gone = asyncio.Event()
        sent: list[str] = []

        async def receive() -> dict[str, object]:
            if not sent:
                sent.append("body")
                return {"type": "http.request", "body": body, "more_body": False}
            await is_gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: object) -> None:
            raise AssertionError("nobody is there")

        calling = asyncio.create_task(stack.app(_scope("/v1/completions"), receive, send))
        # The client leaves in the very moment in which the first tokens arrive.
        await until(lambda: len(engine.added) == 2)
        is_gone.set()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(calling, return_exceptions=True)
        await engine.until(lambda: engine.num_live == 0)

        assert stack.serving.in_flight == 0
        assert stack.serving.client.num_live == 0


def _scope(path: str) -> dict[str, object]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "scheme": "http",
        "server": ("x", 80),
        "client": ("y", 1),
        "root_path": "",
    }
