"""Lets writes through only while this process leads, and knows which of them are still under way."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping

from stoker_operator.cluster.client import Reply, Transport
from stoker_operator.cluster.errors import ApiUnreachable


class NotLeading(ApiUnreachable):
    """The call was not sent, or given up, because another process may lead from now on."""


class FencedTransport:
    """A transport whose writes end in time. Reads are everybody's.

    The clock is asked for each write, when it is sent: whoever was suspended does not go on where it stopped.

    Args:
        transport: moves the requests.
        left_s: seconds for which this process may write; 0 or less when it may not.
    """

    def __init__(self, transport: Transport, left_s: Callable[[], float]) -> None:
        self._transport = transport
        self._left_s = left_s
        self._under_way: set[asyncio.Task[Reply]] = set()

    async def request(
        self, method: str, path: str, params: Mapping[str, str], body: bytes | None, content_type: str
    ) -> Reply:
        """See ``client.Transport``; raises ``NotLeading`` for a write of a process that does not lead."""
        if method == "GET":
            return await self._transport.request(method, path, params, body, content_type)
        left_s = self._left_s()
        if left_s <= 0:
            raise NotLeading(f"{method} {path}: not sent, this operator does not lead")
        # A write that was sent is waited for, also by those who stop: its end must not come as a surprise.
        write = asyncio.create_task(self._write(left_s, method, path, params, body, content_type))
        self._under_way.add(write)
        write.add_done_callback(self._ended)
        return await asyncio.shield(write)

    def stream(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """See ``client.Transport``."""
        return self._transport.stream(path, params)

    async def settle(self) -> None:
        """Wait until no write is under way; each has its own end."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _write(
        self,
        left_s: float,
        method: str,
        path: str,
        params: Mapping[str, str],
        body: bytes | None,
        content_type: str,
    ) -> Reply:
        try:
            async with asyncio.timeout(left_s):
                return await self._transport.request(method, path, params, body, content_type)
        except TimeoutError as error:
            raise NotLeading(f"{method} {path}: no answer for as long as this operator led") from error

    def _ended(self, write: asyncio.Task[Reply]) -> None:
        self._under_way.discard(write)
        if not write.cancelled():
            write.exception()  # nobody may be left to hear it
