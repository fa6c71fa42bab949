"""Requests to a real API server with aiohttp, which kopf brings along anyway.

Credentials come from a login function and are asked for anew when the server answers 401: the token of a
service account is rotated on disk about every hour.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from stoker_operator.cluster.client import Reply, error_body
from stoker_operator.cluster.errors import ApiUnreachable, from_status

logger = logging.getLogger(__name__)

# A watch line is one whole object; pods with long managedFields pass aiohttp's default of 64 KiB per read.
MAX_LINE_BYTES = 4 << 20


@dataclass(frozen=True)
class Credentials:
    """Where the API server is and who we are.

    Args:
        server: address with scheme.
        headers: authorization; empty when a client certificate in ``tls`` says it.
        tls: None for plain http.
        proxy: address of an HTTP proxy.
    """

    server: str
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    proxy: str | None = None


class RequestObserver(Protocol):
    """Who wants to know about every call (the metrics)."""

    def request_done(self, method: str, path: str, code: int, seconds: float) -> None:
        """One call ended; code 0 means that no answer came."""


class HttpTransport:
    """A pool of connections to the API server.

    Args:
        login: reads the credentials; called once at the start and again after a 401.
        request_timeout_s: for a whole request that is not a watch.
        idle_timeout_s: a watch that sends nothing for so long (bookmarks come every minute) is broken.
        observer: told about every call.
    """

    def __init__(
        self,
        login: Callable[[], Credentials],
        request_timeout_s: float = 15.0,
        idle_timeout_s: float = 75.0,
        observer: RequestObserver | None = None,
    ) -> None:
        self._login = login
        self._credentials = login()
        self._observer = observer
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_s, sock_connect=5)
        self._stream_timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=idle_timeout_s)
        self._session = self._open()

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def request(
        self, method: str, path: str, params: Mapping[str, str], body: bytes | None, content_type: str
    ) -> Reply:
        """See ``client.Transport``."""
        headers = {"Content-Type": content_type} if body is not None else {}
        async with self._send(method, path, params, body, headers, self._timeout) as response:
            return Reply(response.status, await response.read(), response.headers.get("Retry-After"))

    async def stream(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """See ``client.Transport``."""
        async with self._send("GET", path, params, None, {}, self._stream_timeout) as response:
            if response.status >= 400:
                status = error_body(await response.read())
                raise from_status(response.status, status, response.headers.get("Retry-After"))
            async for line in response.content:
                if line.strip():
                    yield line

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        body: bytes | None,
        headers: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        loop = asyncio.get_running_loop()
        started_at, code = loop.time(), 0
        try:
            response = await self._open_request(method, path, params, body, headers, limits)
            if response.status == 401:
                response.release()
                await self._log_in_again()
                response = await self._open_request(method, path, params, body, headers, limits)
            code = response.status
            async with response:
                yield response
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError, OSError) as error:
            raise ApiUnreachable(f"{method} {path}: {type(error).__name__}: {error}") from error
        finally:
            if self._observer is not None:
                self._observer.request_done(method, path, code, loop.time() - started_at)

    async def _open_request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        body: bytes | None,
        headers: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        return await self._session.request(
            method,
            self._credentials.server.rstrip("/") + path,
            params=params,
            data=body,
            headers={"Accept": "application/json", **headers, **self._credentials.headers},
            timeout=limits,
            proxy=self._credentials.proxy,
        )

    async def _log_in_again(self) -> None:
        stale, self._credentials = self._credentials, self._login()
        logger.info("the API server did not accept the credentials; read them again")
        if self._credentials.headers != stale.headers and self._credentials.server == stale.server:
            return  # a new token: open watches may go on with the old one until the server ends them
        session, self._session = self._session, self._open()
        await session.close()

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self._credentials.tls or True, limit=0, keepalive_timeout=60)
        return aiohttp.ClientSession(connector=connector, read_bufsize=MAX_LINE_BYTES)
