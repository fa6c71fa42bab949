"""Asks pods how many requests they have in flight: the one call that goes to a pod, not to the API server."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

import aiohttp

logger = logging.getLogger(__name__)

# An answer is one short JSON object, or a page of metrics for engines that have nothing smaller.
MAX_ANSWER_BYTES = 1 << 20


def pod_url(address: str, port: int, path: str) -> str:
    """Return the URL of a page of a pod; an IPv6 address gets its brackets."""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}{path}"


def pod_addresses(pod: Mapping[str, Any]) -> list[str]:
    """Return a pod's addresses, one of each family that it has, its first family's first.

    We may have another first family than the pod, or only one of its two (on the network of a node).
    """
    status = pod.get("status") or {}
    found = [entry.get("ip") for entry in status.get("podIPs") or ()]
    return list(dict.fromkeys(address for address in (status.get("podIP"), *found) if address))


class InFlightReader(Protocol):
    """Reads a page from each of several pods."""

    async def read(self, urls: Mapping[str, str]) -> dict[str, bytes]:
        """The body of each URL that answered 200 in time, under its key."""


class HttpInFlightReader:
    """Reads over HTTP, all pods at once.

    Args:
        answer_within_s: a pod that takes longer has no reading in this pass.
    """

    def __init__(self, answer_within_s: float = 1.0) -> None:
        self._timeout = aiohttp.ClientTimeout(total=answer_within_s)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def read(self, urls: Mapping[str, str]) -> dict[str, bytes]:
        """See ``InFlightReader``; no answer is an answer too: the drain goes on to its deadline."""
        if not urls:
            return {}
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        bodies = await asyncio.gather(*(self._get(self._session, url) for url in urls.values()))
        return {key: body for key, body in zip(urls, bodies, strict=True) if body is not None}

    async def _get(self, session: aiohttp.ClientSession, url: str) -> bytes | None:
        try:
            # A draining server may close connections at any time: none is kept for the next pass.
            async with session.get(url, headers={"Connection": "close"}) as response:
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        return None
                return bytes(body) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.debug("no in-flight reading from %s: %r", url, error)
            return None
