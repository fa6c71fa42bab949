"""What of a request's head says where its body ends, and what bytes that are no request look like. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from stoker_runtime.errors import RequestError

# RFC 9113, 3.4: how a client begins that takes HTTP/2 for granted.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n"
_TLS_HANDSHAKE = b"\x16\x03"  # RFC 8446, 5.1: a record of this type and of any version
OPENING_BYTES = len(_HTTP2_PREFACE)


def body_head(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """Return a request's head that announces the same body and nothing else; None where there is no body.

    Args:
        headers: names in lower case and values, as a parser found them lawful.
    """
    framing = [(name, value) for name, value in headers if name in (b"content-length", b"transfer-encoding")]
    if all(name == b"content-length" and not value.strip(b"0 \t") for name, value in framing):
        return None
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in framing)
    return b"POST / HTTP/1.1\r\n" + lines + b"\r\n"


def no_http(opening: bytes) -> RequestError:
    """Return what is wrong with bytes that are no request.

    Args:
        opening: the first OPENING_BYTES of them, or fewer where there are no more.
    """
    if opening == _HTTP2_PREFACE:
        return version_not_supported("2")
    if opening.startswith(_TLS_HANDSHAKE):
        return RequestError(
            "this port speaks HTTP without TLS; use http:// here, or a proxy that ends TLS",
            code="invalid_http",
        )
    return RequestError("this is no HTTP/1.1 request; see RFC 9112", code="invalid_http")


def version_not_supported(version: str) -> RequestError:
    """Return the answer to a request of another HTTP version."""
    return RequestError(
        f"this server speaks HTTP/1.1, not HTTP/{version}; set the client or proxy to HTTP/1.1 "
        "(curl: --http1.1)",
        status=505,
        code="http_version_not_supported",
    )
