"""Reading a request: its size, its type, its JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from stoker_runtime.errors import RequestError
from stoker_runtime.server.history import History
from stoker_runtime.server.problems import invalid_body, invalid_json
from stoker_runtime.server.protocol import Body

# A client that sends too much gets its answer only if we read on for a while: closing at once resets the
# connection before it has looked.
_DISCARD_FACTOR = 8
# From the end of the headers to the end of the body: 70 kB/s for a body of the usual limit.
BODY_LIMIT_S = 60.0
# A millisecond of parsing or so; the checks of long lists take longer.
_INLINE_BYTES = 64 * 1024

BodyT = TypeVar("BodyT", bound=Body)


async def read_body(request: Request, model: type[BodyT], max_bytes: int) -> BodyT:
    """Read and check a JSON body, and note what of it is ignored in the request's record.

    Raises:
        RequestError: 408 too slow, 413 too large, 415 not JSON, 400 anything else; names the field at fault.
        ClientDisconnect: the client left in the middle of its body.
    """
    content_type = request.headers.get("content-type", "application/json")
    kind = content_type.partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    data = await _read_in_time(request, max_bytes)
    if not is_json:
        raise RequestError(
            f"the body is {kind or 'of no type'}; send JSON with the header Content-Type: application/json",
            status=415,
            code="unsupported_media_type",
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise RequestError(
            f"the body is encoded as {encoding!r}; send it as it is, without the header Content-Encoding",
            status=415,
            code="unsupported_media_type",
        )
    is_large = len(data) > _INLINE_BYTES
    body, ignored = await asyncio.to_thread(parse_body, data, model) if is_large else parse_body(data, model)
    request.state.record.ignored += ignored
    return body


def parse_body(data: bytes, model: type[BodyT]) -> tuple[BodyT, list[str]]:
    """Return what a JSON body asks for, and the paths of what in it nobody looks at.

    Raises:
        RequestError: 400; names the field at fault.
    """
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise invalid_json(error) from error
    try:
        body = model.model_validate(value)
    except ValidationError as error:
        raise invalid_body(error) from error
    return body, ignored_paths(value, body)


def ignored_paths(value: Mapping[str, Any], body: Body) -> list[str]:
    """Return the paths of what of a JSON object is not in the body that was made of it."""
    paths = body.ignored(value) + body.unused()
    for name, part in body:
        if isinstance(part, Body):
            paths += part.ignored(value[name], f"{name}.")
        elif isinstance(part, History):
            paths += part.ignored
    return paths


async def _read_in_time(request: Request, max_bytes: int) -> bytes:
    try:
        async with asyncio.timeout(BODY_LIMIT_S):
            return await _read(request, max_bytes)
    except TimeoutError:
        raise RequestError(
            f"the body was not complete within {BODY_LIMIT_S:g} s; send it at once",
            status=408,
            code="request_timeout",
        ) from None


async def _read(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    num_bytes = int(announced) if announced.isdecimal() else 0
    if num_bytes > max_bytes * _DISCARD_FACTOR:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= max_bytes:
            chunks.append(chunk)
        elif size > max_bytes * _DISCARD_FACTOR:
            break
    if size > max_bytes:
        raise _too_large(max_bytes)
    return b"".join(chunks)


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        f"the body is larger than {max_bytes} bytes, the limit of this server",
        status=413,
        code="request_too_large",
    )
