"""Who may ask: API keys as clients of OpenAI, Anthropic and Azure send them, and the key to drain. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence

from stoker_runtime.errors import RequestError

# Anthropic's clients send the first, Azure's the second.
_PLAIN_HEADERS = frozenset({b"x-api-key", b"api-key"})


class ApiKeys:
    """The keys of one server; it asks nobody for one where it has none.

    Args:
        keys: any of them will do, so that they can be changed one after the other.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> RequestError | None:
        """Return why a request is turned away; None lets it in.

        Args:
            headers: names in lower case and values.
        """
        if not self._digests:
            return None
        presented = list(_presented(headers))
        if not presented:
            return _refused("this server wants an API key; send it in the header Authorization: Bearer KEY")
        # All are compared, each in a time that does not depend on what it holds.
        matches = [hmac.compare_digest(_digest(key), known) for key in presented for known in self._digests]
        return None if any(matches) else _refused("the API key is not one of this server's")


class DrainKey:
    """The key of whoever may take this server out of service.

    Args:
        key: None lets nobody.
    """

    def __init__(self, key: str | None) -> None:
        self._digest = None if key is None else _digest(key.encode())

    def refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> RequestError | None:
        """Return why a request is turned away; None lets it in.

        Args:
            headers: names in lower case and values.
        """
        if self._digest is None:
            return RequestError(
                "this server was started without --drain-key, so nobody may drain it; SIGTERM does",
                status=403,
                code="drain_not_offered",
            )
        if any(hmac.compare_digest(_digest(key), self._digest) for key in _bearers(headers)):
            return None
        return RequestError(
            "this wants the server's drain key in the header Authorization: Bearer KEY",
            status=401,
            code="invalid_drain_key",
        )


def _presented(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    headers = list(headers)
    yield from (value.strip() for name, value in headers if name in _PLAIN_HEADERS)
    yield from _bearers(headers)


def _bearers(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _refused(message: str) -> RequestError:
    return RequestError(message, status=401, code="invalid_api_key")
