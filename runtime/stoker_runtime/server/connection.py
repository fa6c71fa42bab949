"""One HTTP connection: uvicorn's, with limits on a request's head and with OpenAI's error bodies.

What is refused here never becomes a request: bytes that are no HTTP, a head that is too large or too slow,
and requests that are sent before the one before them is answered. Offers of another protocol are ignored, as
RFC 9110, 7.8 allows: clients that prefer HTTP/2 make one with every request (Java's do).
"""

from __future__ import annotations

import asyncio
import logging
import select
import uuid
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from stoker_runtime.errors import RequestError
from stoker_runtime.server import framing
from stoker_runtime.server.problems import error_response

# Request line and headers; a long list of cookies and tokens is a tenth of it.
MAX_HEAD_BYTES = 64 * 1024
# From the first byte of a request to the end of its headers.
HEAD_LIMIT_S = 30.0
# A connection closed over bytes that nobody read is reset, and with it goes the answer.
_LINGER_S = 2.0

logger = logging.getLogger(__name__)


class _Refused(Exception):
    """Ends the parsing of a connection; what is answered is noted elsewhere."""


class Connections(ServerState):
    """What all connections of a server share: uvicorn's, and whether there is any.

    Attributes:
        are_gone: set while there is none.
    """

    connections: set[Connection]  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.are_gone = asyncio.Event()
        self.are_gone.set()


class Connection(HttpToolsProtocol):
    """See the module. One request at a time, so that a client that leaves is noticed while it is served."""

    server_state: Connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_head = True  # between two requests, too
        self._num_head_bytes = 0  # as received
        self._num_parsed_bytes = 0  # of the target and of whole headers, those behind a chunked body as well
        self._opening = b""  # of the bytes that are to become a request
        self._is_replaying = False  # what the parser tells now was told before, see _ignore_offer
        self._is_deaf = False
        self._has_said_all = False  # the client has closed its side, or all of the connection
        self._refusal: RequestError | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close a connection that asks nothing as one that asks nothing more."""
        super().connection_made(transport)
        self.server_state.are_gone.clear()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def limit_idle(self, limit_s: int) -> None:
        """Close the connection once it is idle for this long, counted from now if it is idle already."""
        self.timeout_keep_alive = limit_s
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(limit_s, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close the idle connection, unless a request has come that the busy loop has not read yet."""
        self.timeout_keep_alive_task = None
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        if not poll.poll(0):
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the timers."""
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)
        if not self.connections:
            self.server_state.are_gone.set()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Let a whole request have its answer, unless it is one that is given up when its client leaves.

        A client may close its side alone and still read. One that has closed all looks the same until
        something is written to it, so for what takes long both count as gone.
        """
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_started:
            return False
        self._has_said_all = True
        cycle.keep_alive = False
        cycle.message_event.set()
        return True

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless nothing that comes is of interest any more."""
        if self._is_deaf:
            return  # still read: it is how the end of the connection shows
        self._unset_keepalive_if_required()
        if self._is_in_head:
            self._start_head_timer()
            self._num_head_bytes += len(data)
            self._opening += data[: framing.OPENING_BYTES - len(self._opening)]
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or framing.no_http(self._opening))
        # The parser keeps a header to itself until its last byte is there.
        if self._is_in_head and self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())

    def _parse(self, data: bytes) -> None:
        """Parse bytes, also behind a head that offers another protocol, where the parser stops."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._is_deaf:
                    return
                data = data[offer.args[0] :]
                self._ignore_offer()
            else:
                return

    def _ignore_offer(self) -> None:
        """Go on with the request's body, which the parser takes for bytes of the protocol that was offered.

        A new parser reads it once it knows how long it is, and then the requests that follow.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as our base class does
        head = framing.body_head(self.headers)
        if head is None:
            self.on_message_complete()
            return
        self._is_replaying = True
        try:
            self.parser.feed_data(head)
        finally:
            self._is_replaying = False

    def on_message_begin(self) -> None:
        """Stop at a request that does not wait for the answer to the one before it.

        Answering it would mean to stop reading until then, and a connection that nobody reads from does not
        tell that its client has left. A client that sends ahead has to send again what was not answered.
        """
        if self._is_replaying:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            raise _Refused
        self._num_parsed_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's target."""
        if not self._is_replaying:
            self._count(len(url))
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or one that follows a chunked body."""
        if not self._is_replaying:
            self._count(len(name) + len(value))
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request.

        One that asks for a tunnel (CONNECT) is the last of its connection: what follows it is for the tunnel.
        """
        if self._is_replaying:
            return
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._refusal = framing.version_not_supported(version)
            raise _Refused
        self._is_in_head = False
        self._stop_head_timer()
        super().on_headers_complete()
        if self.scope["method"] == "CONNECT":
            self._is_deaf = True
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Wait for the next request."""
        if self.parser.should_upgrade() and self.scope["method"] != "CONNECT":
            return  # the head alone is complete, see _ignore_offer
        self._is_in_head = True
        self._num_head_bytes, self._opening = 0, b""
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        """Let the application answer, as the client can read it."""
        if cycle.scope["http_version"] != "1.1":
            cycle.keep_alive = False
            app = _unchunked(cycle, app)
        super()._start_asgi_task(cycle, self._told_of_the_end(cycle, app))  # type: ignore[arg-type]

    def _told_of_the_end(self, cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
        """Return the application, to which a client that has said all it will is one that has left."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            is_body_read = False

            async def receive_or_end() -> Message:
                nonlocal is_body_read
                if not (is_body_read and self._has_said_all):
                    message = await receive()
                    if not (is_body_read and self._has_said_all):
                        is_body_read = not message.get("more_body", False)
                        return message
                return {"type": "http.disconnect"}

            await app(scope, receive_or_end, send)
            if self._has_said_all and not cycle.response_complete:
                cycle.disconnected = True
                self.transport.close()

        return answer

    def _refuse(self, error: RequestError) -> None:
        """Answer what is no request, in OpenAI's form, and close the connection. The first error stands."""
        if self._is_deaf:
            return
        self._is_deaf = True
        self._stop_head_timer()
        cycle = None if self.cycle is None or self.cycle.response_complete else self.cycle
        if cycle is not None and not cycle.more_body:
            cycle.keep_alive = False  # what runs is answered first, and nothing follows
            return
        if cycle is not None:
            cycle.disconnected = True  # its body will never be whole
            cycle.message_event.set()
        if cycle is not None and cycle.response_started:
            self.transport.close()
            return
        self.transport.write(_answer(error))
        self.transport.write_eof()
        self._linger_timer = self.loop.call_later(_LINGER_S, self.transport.close)

    def _count(self, num_bytes: int) -> None:
        self._num_parsed_bytes += num_bytes
        if self._num_parsed_bytes > MAX_HEAD_BYTES:
            self._refusal = _head_too_large()
            raise _Refused

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_LIMIT_S, self._on_slow_head)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        self._head_timer = None
        self._refuse(
            RequestError(
                f"the request's headers were not complete within {HEAD_LIMIT_S:g} s; send them at once",
                status=408,
                code="request_timeout",
            )
        )


def _unchunked(cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
    """Return the application for a client from before chunks: its answer ends where the connection does.

    Source: RFC 9112, 6.1: no Transfer-Encoding unless the request says HTTP/1.1.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_plain(message: Message) -> None:
            if message["type"] == "http.response.start":
                cycle.chunked_encoding = False
            else:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return answer


def _head_too_large() -> RequestError:
    return RequestError(
        f"the request line and its headers are larger than {MAX_HEAD_BYTES} bytes, the limit of this server",
        status=431,
        code="headers_too_large",
    )


def _answer(error: RequestError) -> bytes:
    """Return a whole HTTP response."""
    request_id = uuid.uuid4().hex
    logger.info(
        "refused a connection's bytes",
        extra={"request_id": request_id, "status": error.status, "error": error.code},
    )
    response = error_response(error, headers={"x-request-id": request_id, "connection": "close"})
    headers = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
    return STATUS_LINE[error.status] + headers + b"\r\n" + bytes(response.body)
