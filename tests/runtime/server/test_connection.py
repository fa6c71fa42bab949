"""Bytes over a bare connection: what is no HTTP, what is too much or too slow, and what is sent ahead."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from raw_http import opened
from server_engine import DEADLINE_S, FakeEngine, Stack, listening, running_stack, until

from stoker_runtime.config import ServerConfig
from stoker_runtime.server import connection
from stoker_runtime.server.lifecycle import _listen

GET = b"GET /version HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


async def answers(data: bytes, *more: bytes) -> bytes:
    """Send bytes, then all that comes back until the server closes the connection."""
    async with running_stack() as stack, listening(stack) as url, opened(url) as (reader, writer):
        for part in (data, *more):
            writer.write(part)
            await writer.drain()
        return await reader.read()


def only_error(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Parse the one response that came; it must be an error in OpenAI's form that closes the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().lower().split("\r\n")
    headers = dict(line.split(": ") for line in lines)
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert len(headers["x-request-id"]) == 32
    error = json.loads(body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return int(status.split()[1]), error


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"hello\r\n\r\n", id="no-http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls"),
        pytest.param(b"GET /version HTTP/1.1\r\nHost : x\r\n\r\n", id="space-in-a-header-name"),
        pytest.param(b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", id="target-beyond-ascii"),
        pytest.param(POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", id="two-lengths"),
        pytest.param(POST + b"Content-Length: 9e9\r\n\r\n{}", id="length-is-no-number"),
        pytest.param(
            POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", id="chunk-size-is-no-number"
        ),
    ],
)
async def test_bytes_that_are_no_request_are_refused_in_openais_form(data: bytes) -> None:
    status, error = only_error(await answers(data))

    assert (status, error["code"]) == (400, "invalid_http")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], id="preface"),
        pytest.param([b"PRI * HT", b"TP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 9], id="preface-in-parts"),
        pytest.param([b"GET /version HTTP/2.0\r\nHost: x\r\n\r\n"], id="request-line"),
    ],
)
async def test_http_2_without_an_offer_is_refused_with_what_to_do(parts: list[bytes]) -> None:
    status, error = only_error(await answers(*parts))

    assert (status, error["code"]) == (505, "http_version_not_supported")
    assert "HTTP/1.1" in error["message"]


async def test_tls_on_this_port_is_told_apart() -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 32
    status, error = only_error(await answers(hello))

    assert status == 400
    assert "http://" in error["message"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(GET + b"A: " + b"a" * 2**17 + b"\r\n\r\n", id="one-header"),
        pytest.param(GET + b"A: " + b"a" * 2**17, id="one-header-without-end"),
        pytest.param(GET + b"a:b\r\n" * 2**15 + b"\r\n", id="many-headers"),
        pytest.param(b"GET /" + b"a" * 2**17 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="target"),
        pytest.param(
            POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" + b"a: b\r\n" * 2**15,
            id="behind-a-chunked-body",
        ),
    ],
)
async def test_a_head_that_is_too_large_is_a_431(data: bytes) -> None:
    status, error = only_error(await answers(data))

    assert (status, error["code"]) == (431, "headers_too_large")


async def test_a_large_body_in_the_same_bytes_is_no_large_head() -> None:
    body = b"{" + b" " * 2**17
    answer = await answers(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"invalid_json" in answer


async def test_a_head_that_does_not_come_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_LIMIT_S", 0.05)

    status, error = only_error(await answers(GET))

    assert (status, error["code"]) == (408, "request_timeout")


async def test_a_connection_that_asks_nothing_is_closed() -> None:
    async with (
        running_stack() as stack,
        listening(stack, timeout_keep_alive=0) as url,
        opened(url) as (reader, _),
    ):
        assert await reader.read() == b""


async def test_requests_one_after_the_other_share_a_connection() -> None:
    async with running_stack() as stack, listening(stack) as url, opened(url) as (reader, writer):
        for _ in range(2):
            writer.write(GET + b"\r\n")
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"}")


def request(**fields: object) -> bytes:
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 3, **fields}).encode()
    return POST + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def check_left(stack: Stack) -> None:
    await stack.engine.until(lambda: stack.engine.num_live == 0)
    await until(lambda: stack.serving.in_flight == 0)


@pytest.mark.parametrize(
    "ahead", [GET + b"\r\n", request(), b"rubbish\r\n\r\n"], ids=["get", "post", "rubbish"]
)
async def test_what_is_sent_ahead_is_not_answered_and_what_runs_is(ahead: bytes) -> None:
    engine = FakeEngine()
    engine.may_step.clear()
    async with running_stack(engine) as stack, listening(stack) as url, opened(url) as (reader, writer):
        writer.write(request() + ahead)
        await engine.until(lambda: len(engine.added) == 1)
        engine.may_step.set()
        answer = await reader.read()
        await check_left(stack)

    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer
    assert b'"text_completion"' in answer
    assert len(engine.added) == 1


async def test_a_client_that_sent_ahead_and_left_frees_the_engine() -> None:
    engine = FakeEngine(reply=lambda request: [65] * 10_000)
    engine.may_step.clear()
    async with running_stack(engine) as stack, listening(stack) as url:
        async with opened(url) as (_, writer):
            writer.write(request(max_tokens=200))
            await engine.until(lambda: len(engine.added) == 1)
            writer.write(request(max_tokens=200) * 3)
            await writer.drain()

        await engine.until(lambda: len(engine.aborted) == 1)
        await check_left(stack)


async def read_to_the_end(stack: Stack, data: bytes) -> bytes:
    """Send a request, close the client's side, and read what comes all the same."""
    async with listening(stack) as url, opened(url) as (reader, writer):
        writer.write(data)
        writer.write_eof()
        return await reader.read()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(GET + b"\r\n", 200, id="get"),
        pytest.param(POST + b"Content-Length: 2\r\n\r\n{}", 400, id="refused"),
        pytest.param(POST + b"Content-Length: 3\r\n\r\n{}", None, id="not-whole"),
    ],
)
async def test_a_client_that_closes_its_side_gets_what_takes_no_time(data: bytes, status: int | None) -> None:
    async with running_stack() as stack:
        answer = await read_to_the_end(stack, data)

    if status is None:
        assert answer == b""
    else:
        assert answer.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_a_client_that_closes_its_side_counts_as_gone(is_stream: bool) -> None:
    engine = FakeEngine(reply=lambda request: [65] * 10_000)
    engine.may_step.clear()
    async with running_stack(engine) as stack:
        status, error = only_error(await read_to_the_end(stack, request(max_tokens=200, stream=is_stream)))
        await check_left(stack)

    assert (status, error["code"]) == (499, "client_gone")


async def test_a_client_that_closes_its_side_in_a_stream_is_left_without_an_error_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = FakeEngine(reply=lambda request: [65] * 10_000)
    async with running_stack(engine) as stack, listening(stack) as url, opened(url) as (reader, writer):
        writer.write(request(max_tokens=200, stream=True))
        await reader.readuntil(b"data: ")
        engine.may_step.clear()
        writer.write_eof()
        await check_left(stack)

    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_http_1_0_gets_answers_without_chunks() -> None:
    body = json.dumps({"model": "tiny", "prompt": "ab", "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n"
    answer = await answers(head % len(body) + body)

    lines, _, events = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in lines
    assert b"connection: close" in lines
    assert events.startswith(b"data: {")
    assert events.endswith(b"\n\ndata: [DONE]\n\n")
    assert (await answers(b"GET /version HTTP/1.0\r\n\r\n")).endswith(b'"}')


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_the_ipv6_wildcard_takes_ipv4_as_well() -> None:
    with _listen(ServerConfig(served_model_names=("tiny",), host="::", port=0)) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=DEADLINE_S).close()
