"""POST /drain: who may say it, what it changes at once, and what becomes of connections that clients keep."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
from raw_http import opened
from server_engine import DEADLINE_S, FakeEngine, Stack, listening, make_server_config, running_stack, until

from stoker_runtime.config import EngineConfig, ServerConfig
from stoker_runtime.errors import ConfigError
from stoker_runtime.server import listener
from stoker_runtime.server.connection import Connection
from stoker_runtime.server.lifecycle import _Process
from stoker_runtime.server.listener import HttpServer, uvicorn_config

KEY = "6f1c2a90-0b7e-4f6e-9a55-0d9f7c1f2b3e"
BEARER = {"authorization": f"Bearer {KEY}"}
COMPLETION = {"model": "tiny", "prompt": "ab", "max_tokens": 3}
GET = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"


def keyed(**changes: Any) -> ServerConfig:
    return make_server_config(drain_key=KEY, **changes)


async def drained(stack: Stack) -> dict[str, Any]:
    response = await stack.http.post("/drain", headers=BEARER)
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    return answer


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """GET over an open connection and return the head of the answer, in lower case."""
    writer.write(GET)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"}")
    return head.decode().lower()


async def test_a_drain_answers_with_the_load_and_may_be_told_again() -> None:
    async with running_stack(config=keyed()) as stack:
        expected = {"in_flight": 0, "server_load": 0, "waiting": 0, "draining": True}
        assert await drained(stack) == expected
        assert await drained(stack) == expected
        assert (await stack.http.get("/load")).json() == expected
        assert (await stack.http.get("/ready")).json() == {"reason": "Draining"}
        late = await stack.http.post("/v1/completions", json=COMPLETION)
    assert (late.status_code, late.headers["connection"]) == (200, "close")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"authorization": "Bearer other"}, id="another"),
        pytest.param({"authorization": f"Basic {KEY}"}, id="another-scheme"),
        pytest.param({"x-api-key": KEY}, id="as-a-clients-key"),
        pytest.param({"authorization": "Bearer secret"}, id="a-clients-key"),
    ],
)
async def test_who_does_not_know_the_key_drains_nothing(headers: dict[str, str]) -> None:
    async with running_stack(config=keyed(api_keys=("secret",))) as stack:
        response = await stack.http.post("/drain", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_drain_key")
        assert (await stack.http.get("/ready")).status_code == 200


async def test_a_server_without_a_drain_key_lets_nobody_drain_it() -> None:
    async with running_stack() as stack:
        response = await stack.http.post("/drain", headers=BEARER)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "drain_not_offered")
        assert (await stack.http.get("/drain", headers=BEARER)).status_code == 405
        assert (await stack.http.get("/ready")).status_code == 200


async def test_the_drain_key_is_no_key_of_a_client() -> None:
    async with running_stack(config=keyed(api_keys=("secret",))) as stack:
        assert (await stack.http.get("/v1/models", headers=BEARER)).status_code == 401


@pytest.mark.parametrize("key", ["", "two words", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="--drain-key"):
        make_server_config(drain_key=key)


def test_the_key_does_not_show() -> None:
    assert KEY not in repr(keyed())


async def test_connections_at_rest_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "DRAINING_IDLE_S", 0)
    async with (
        running_stack(config=keyed()) as stack,
        listening(stack) as url,
        opened(url) as (reader, writer),
        opened(url) as (unused, _),
    ):
        assert "connection: close" not in await asked(reader, writer)
        await drained(stack)
        assert await reader.read() == b""
        assert await unused.read() == b""


async def test_a_connection_in_use_is_told_and_then_closed() -> None:
    async with (
        running_stack(config=keyed()) as stack,
        listening(stack) as url,
        opened(url) as (reader, writer),
    ):
        assert "connection: close" not in await asked(reader, writer)
        await drained(stack)
        assert "connection: close" in await asked(reader, writer)
        assert await reader.read() == b""


async def test_a_stream_goes_on_to_its_end_and_its_connection_may_ask_once_more() -> None:
    engine = FakeEngine()
    engine.may_step.clear()
    body = b'{"model": "tiny", "prompt": "ab", "max_tokens": 3, "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with running_stack(engine, config=keyed()) as stack, listening(stack) as url:
        async with opened(url) as (reader, writer):
            writer.write(head + body)
            assert b"connection: close" not in await reader.readuntil(b"\r\n\r\n")
            assert (await drained(stack))["in_flight"] == 1
            engine.may_step.set()
            assert (await reader.readuntil(b"0\r\n\r\n")).count(b"data: [DONE]") == 1
            assert "connection: close" in await asked(reader, writer)
        await until(lambda: stack.serving.in_flight == 0)
        assert (await drained(stack))["in_flight"] == 0


async def test_an_idle_limit_does_not_close_over_a_request_that_has_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Connection] = []
    original = Connection.connection_made

    def made(self: Connection, transport: asyncio.Transport) -> None:
        original(self, transport)
        found.append(self)

    monkeypatch.setattr(Connection, "connection_made", made)
    async with running_stack(config=keyed()) as stack, listening(stack) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as client:
            await until(lambda: bool(found))
            client.sendall(GET)  # in the kernel's hands: this loop has not read it
            found[0].timeout_keep_alive_handler()
            answer = await asyncio.to_thread(client.recv, 4096)
    assert b"200 OK" in answer


async def test_the_delay_at_the_end_counts_from_the_drain() -> None:
    config = keyed(shutdown_delay_s=1000.0)
    async with running_stack(config=config) as stack:
        await drained(stack)
        stack.serving.draining_since_s = time.monotonic() - 1000.0
        process = _Process(config, EngineConfig(model="tiny"), ())
        http = HttpServer(uvicorn_config(stack.serving))
        http.servers = []
        async with asyncio.timeout(DEADLINE_S):
            await process._drain(stack.serving, http)
        assert stack.serving.is_closed
