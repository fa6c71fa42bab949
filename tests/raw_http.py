"""HTTP as bytes, for the server's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server_engine import DEADLINE_S


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a server; what is done in the block has a deadline."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield reader, writer
    finally:
        writer.close()


async def exchanged(url: str, data: bytes) -> bytes:
    """Send bytes as they are and return all that comes back; they must end the connection."""
    async with opened(url) as (reader, writer):
        writer.write(data)
        return await reader.read()
