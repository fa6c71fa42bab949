"""Asks a pod how many requests it has in flight: the one call that goes to a pod, not to the API server.

A pod that drains is told so with the same call, each time it is asked: whoever asks needs no memory of what
was said before.
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

logger = logging.getLogger(__name__)

# An answer is one short JSON object, or a page of metrics for engines that have nothing smaller.
MAX_ANSWER_BYTES = 1 << 20
# A draining server may close connections at any time: none is kept for the next call.
_CLOSE = {"Connection": "close"}


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


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask a pod at one of its addresses.

    Args:
        load_url: page that tells its requests in flight.
        drain_url: where it is told to drain, which answers as well; None asks only.
        drain_key: shows that we may.
    """

    load_url: str
    drain_url: str | None = None
    drain_key: str = ""


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """What a pod said.

    Args:
        body: of its 200; None when there was none.
        trouble: why there was none, in words that stay the same while the reason does.
    """

    body: bytes | None
    trouble: str = ""


class InFlightReader(Protocol):
    """Asks pods."""

    async def read(self, questions: Mapping[str, Question]) -> dict[str, PodAnswer]:
        """What was said to each question, under its key."""


class HttpInFlightReader:
    """Asks over HTTP, all questions at once.

    Args:
        answer_within_s: what takes longer is no answer.
    """

    def __init__(self, answer_within_s: float = 1.0) -> None:
        self._within_s = answer_within_s
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def read(self, questions: Mapping[str, Question]) -> dict[str, PodAnswer]:
        """See ``InFlightReader``; no answer is an answer too: the drain goes on to its deadline."""
        if not questions:
            return {}
        if self._session is None:
            # Who asks has a limit of its own: to wait here for a connection would look like a silent pod.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        answers = await asyncio.gather(*(self._ask(self._session, one) for one in questions.values()))
        return dict(zip(questions, answers, strict=True))

    async def _ask(self, session: aiohttp.ClientSession, question: Question) -> PodAnswer:
        try:
            async with asyncio.timeout(self._within_s):
                if question.drain_url is not None:
                    headers = {**_CLOSE, "Authorization": f"Bearer {question.drain_key}"}
                    answer = await self._body(session, "POST", question.drain_url, headers)
                    if answer.body is not None:
                        return answer
                    # An engine from before, or one that was not given the key: it can still be asked.
                    logger.debug("%s: %s", question.drain_url, answer.trouble)
                return await self._body(session, "GET", question.load_url, _CLOSE)
        except TimeoutError:
            return PodAnswer(None, f"no answer within {self._within_s:g} s")
        except (aiohttp.ClientError, OSError) as error:
            logger.debug("no in-flight reading from %s: %r", question.load_url, error)
            return PodAnswer(None, _in_words(error))

    async def _body(
        self, session: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str]
    ) -> PodAnswer:
        async with session.request(method, url, headers=headers, allow_redirects=False) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    return PodAnswer(None, f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            if response.status != 200:
                return PodAnswer(None, f"it answers with status {response.status}")
            return PodAnswer(bytes(body))


def _in_words(error: Exception) -> str:
    """An error without what differs from one time to the next, such as the number of a port of ours."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed"
    return type(error).__name__
