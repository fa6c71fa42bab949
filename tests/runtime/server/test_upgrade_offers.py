"""Requests that offer another protocol (RFC 9110, 7.8): the offer is ignored and the request is answered."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from server_engine import DEADLINE_S, Stack, listening, running_stack, until
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stoker_runtime.server import framing
from stoker_runtime.server.connection import Connection, Connections
from stoker_runtime.server.listener import uvicorn_config

BODY = json.dumps({"prompt": "ab"}).encode()
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
WEBSOCKET = (
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
OFFERS = [pytest.param(H2C, id="h2c"), pytest.param(WEBSOCKET, id="websocket")]


def with_length(offer: bytes, body: bytes = BODY, target: bytes = b"/tokenize") -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n"
    return head % (target, offer, len(body)) + body


def chunked(offer: bytes, body: bytes = BODY) -> bytes:
    head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n%s\r\n" % offer
    return head + b"3\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (body[:3], len(body) - 3, body[3:])


class Wire(asyncio.Transport):
    """A transport that only notes what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers with the body it gets."""
    body, is_whole = b"", False
    while not is_whole:
        message = await receive()
        body, is_whole = body + message["body"], not message["more_body"]
    await Response(body)(scope, receive, send)


@asynccontextmanager
async def wired(stack: Stack | None = None) -> AsyncIterator[tuple[Connection, Wire]]:
    """A connection of the server's, or of one that echoes, given bytes by hand."""
    if stack is None:
        config = uvicorn.Config(echo, ws="none", lifespan="off", log_config=None, access_log=False)
    else:
        config = uvicorn_config(stack.serving)
    config.load()
    connection, wire = Connection(config=config, server_state=Connections(), app_state={}), Wire()
    connection.connection_made(wire)
    try:
        yield connection, wire
    finally:
        connection.connection_lost(None)


async def exchange(stack: Stack | None, requests: list[list[bytes]]) -> list[bytes]:
    """Send requests over one connection, each in parts and after the answer to the one before."""
    answers = []
    async with wired(stack) as (connection, wire):
        for number, parts in enumerate(requests, start=1):
            for part in parts:
                connection.data_received(part)
                await asyncio.sleep(0)
            await until(lambda number=number: wire.written.count(b"HTTP/1.1 ") == number)  # type: ignore[misc]
            await until(lambda: connection.cycle.response_complete)
            answers.append(wire.written.rpartition(b"HTTP/1.1 ")[2])
        assert not wire.is_closed
    return answers


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("send", [with_length, chunked])
async def test_a_body_behind_an_offer_is_read_however_its_bytes_come(send: Any, offer: bytes) -> None:
    data = send(offer)
    for split in range(1, len(data)):
        answer, last_answer = await exchange(None, [[data[:split], data[split:]], [with_length(b"")]])
        assert answer.startswith(b"200 OK"), split
        assert answer.endswith(BODY), split
        assert last_answer.endswith(BODY), split


@pytest.mark.parametrize("offer", OFFERS)
async def test_an_offer_that_comes_byte_by_byte(offer: bytes) -> None:
    for data in (with_length(offer), chunked(offer)):
        answers = await exchange(None, [[bytes([byte]) for byte in data]] * 2)
        assert all(answer.endswith(BODY) for answer in answers)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(b"GET /version HTTP/1.1\r\n", b"200", id="get"),
        pytest.param(b"HEAD /version HTTP/1.1\r\n", b"200", id="head"),
        pytest.param(b"OPTIONS /version HTTP/1.1\r\n", b"204", id="options"),
        pytest.param(b"GET /v1/realtime HTTP/1.1\r\n", b"404", id="nothing-there"),
        pytest.param(b"POST /tokenize HTTP/1.1\r\nContent-Length: 0\r\n", b"400", id="empty"),
        pytest.param(b"DELETE /version HTTP/1.1\r\nContent-Length: 2\r\n", b"405", id="delete"),
    ],
)
@pytest.mark.parametrize("offer", OFFERS)
async def test_every_method_may_come_with_an_offer(head: bytes, status: bytes, offer: bytes) -> None:
    body = b"{}" if b"Length: 2" in head else b""
    data = head + b"Host: x\r\n" + offer + b"\r\n" + body
    async with running_stack() as stack:
        answers = await exchange(stack, [[data], [data]])

    assert [answer[:3] for answer in answers] == [status, status]


async def test_an_answer_to_an_offer_offers_nothing() -> None:
    async with running_stack() as stack:
        (answer,) = await exchange(stack, [[with_length(H2C)]])

    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"upgrade" not in head
    assert b"101" not in head.splitlines()[0]


@pytest.mark.parametrize("send", [with_length, chunked])
async def test_what_is_sent_ahead_of_the_answer_to_an_offer_is_not_answered(send: Any) -> None:
    async with running_stack() as stack, wired(stack) as (connection, wire):
        connection.data_received(send(H2C) + send(H2C))
        await until(lambda: wire.is_closed)

    assert wire.written.count(b"HTTP/1.1 200") == 1
    assert wire.written.count(b"HTTP/1.1 ") == 1


async def test_a_broken_body_behind_an_offer_is_refused() -> None:
    data = chunked(H2C).replace(b"\r\n3\r\n", b"\r\nzz\r\n")
    async with running_stack() as stack, wired(stack) as (connection, wire):
        connection.data_received(data)
        assert wire.written.startswith(b"HTTP/1.1 400 ")

    assert b"invalid_http" in wire.written


async def test_a_body_behind_an_offer_has_the_limits_of_any_other() -> None:
    async with running_stack() as stack, wired(stack) as (connection, wire):
        connection.data_received(with_length(H2C, b" " * 100)[:-50])
        await until(lambda: connection.cycle is not None)
        assert connection.cycle.more_body
        assert wire.written == b""
        connection.data_received(b" " * 50)
        await until(lambda: b"invalid_json" in wire.written)


async def test_a_tunnel_is_refused_and_its_bytes_are_no_request() -> None:
    ahead = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    async with running_stack() as stack, wired(stack) as (connection, wire):
        connection.data_received(b"CONNECT http://a/ HTTP/1.1\r\nHost: a\r\n\r\n" + ahead)
        await until(lambda: wire.is_closed)

    assert wire.written.count(b"HTTP/1.1 ") == 1
    assert wire.written[9:12] in (b"404", b"405")


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
async def test_curl_that_prefers_http_2_is_answered() -> None:
    version = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout
    if "HTTP2" not in version:
        pytest.skip("this machine's curl has no HTTP/2")
    async with running_stack() as stack, listening(stack) as url:
        headers = ["-H", "Content-Type: application/json"]
        command = ["curl", "-sS", "--http2", "--max-time", f"{DEADLINE_S:g}", *headers, "-d", BODY.decode()]
        output = await run([*command, f"{url}/tokenize", f"{url}/tokenize"])
        wanted = json.dumps(stack.ids("ab"), separators=(",", ":"))

    assert output.count(wanted) == 2


JAVA = """
import java.net.URI;
import java.net.http.*;
import java.net.http.HttpRequest.BodyPublishers;

public class Ask {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 1; i < arguments.length; i++) {
            byte[] body = arguments[i].getBytes("UTF-8");
            HttpRequest.BodyPublisher sized = BodyPublishers.ofByteArray(body);
            HttpRequest.BodyPublisher chunked =
                BodyPublishers.ofInputStream(() -> new java.io.ByteArrayInputStream(body));
            for (HttpRequest.BodyPublisher publisher : new HttpRequest.BodyPublisher[] {sized, chunked}) {
                HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0] + "/tokenize"))
                    .header("Content-Type", "application/json").POST(publisher).build();
                HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
                System.out.println(response.statusCode() + " " + response.version() + " " + response.body());
            }
        }
    }
}
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="this machine has no java")
async def test_javas_own_client_is_answered(tmp_path: Path) -> None:
    source = tmp_path / "Ask.java"
    source.write_text(JAVA)
    async with running_stack() as stack, listening(stack) as url:
        output = await run(["java", str(source), url, BODY.decode(), BODY.decode()])
        wanted = json.dumps(stack.ids("ab"), separators=(",", ":"))

    lines = output.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("200 HTTP_1_1 ") and wanted in line for line in lines)


async def run(command: list[str]) -> str:
    """Run a client beside the server, which is in this process."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(6 * DEADLINE_S):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param([(b"content-length", b"0")], None, id="no-bytes"),
        pytest.param([(b"content-length", b"7")], b"content-length: 7\r\n", id="length"),
        pytest.param([(b"transfer-encoding", b"chunked")], b"transfer-encoding: chunked\r\n", id="chunked"),
    ],
)
def test_a_head_for_the_body_alone(headers: list[tuple[bytes, bytes]], wanted: bytes | None) -> None:
    others = [(b"host", b"x"), (b"upgrade", b"h2c"), (b"connection", b"upgrade")]

    head = framing.body_head([*others[:1], *headers, *others[1:]])

    assert head == (None if wanted is None else b"POST / HTTP/1.1\r\n" + wanted + b"\r\n")


@given(st.integers(min_value=0, max_value=10**18), st.sampled_from([b"%d", b"00%d", b" %d "]))
def test_a_body_has_a_head_unless_it_is_empty(length: int, form: bytes) -> None:
    assert (framing.body_head([(b"content-length", form % length)]) is None) == (length == 0)
