"""Server-sent events on their way: at once, kept alive while nothing comes, and given up with the client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

# A comment in the format of event streams: parsers skip it.
KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx, and who follows it, would collect events before passing them on
}

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class EventStream(StreamingResponse):
    """A stream of events whose head goes out before the first of them is there.

    Args:
        events: bytes of whole events. Closed however the stream ends.
        on_end: called however it ends, also when the client left before the first byte.
        keep_alive_s: after so many seconds without an event comes a comment, so that nothing on the way takes
            the connection for dead; 0: never.
    """

    body_iterator: AsyncGenerator[bytes]

    def __init__(
        self, events: AsyncGenerator[bytes], on_end: Callable[[], None], *, keep_alive_s: float
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._on_end = on_end
        self._keep_alive_s = keep_alive_s
        self._is_sending = False
        self._sent_s = 0.0  # the loop's time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client leaves."""
        try:
            async with aclosing(self.body_iterator):
                await unless_gone(receive, self.stream_response(send))
        except ClientDisconnect:
            logger.debug("a client left its stream")
        finally:
            self._on_end()

    async def stream_response(self, send: Send) -> None:
        """Send the whole response."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._sent_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            keeping_alive = tasks.create_task(self._keep_alive(send))
            async for events in self.body_iterator:
                await self._send(send, events)
            keeping_alive.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        if self._keep_alive_s == 0:
            return
        loop = asyncio.get_running_loop()
        while True:
            left_s = self._sent_s + self._keep_alive_s - loop.time()
            if left_s > 0:
                await asyncio.sleep(left_s)
            elif self._is_sending:  # the client has not read what was sent before
                await asyncio.sleep(self._keep_alive_s)
            else:
                await self._send(send, KEEP_ALIVE)

    async def _send(self, send: Send, data: bytes) -> None:
        self._is_sending = True
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._is_sending = False
        self._sent_s = asyncio.get_running_loop().time()


async def unless_gone(receive: Receive, work: Awaitable[ResultT]) -> ResultT:
    """Return what the work gives, unless the client leaves before: then the work is cancelled.

    Raises:
        ClientDisconnect: the client left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
