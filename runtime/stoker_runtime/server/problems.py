"""Errors as clients see them: an OpenAI error body, its status and its headers. Pure but for the response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import ValidationError
from starlette.responses import Response

from stoker_runtime.errors import EngineDead, RequestError
from stoker_runtime.server.json_text import to_json

_CODES = {
    "missing": "missing_required_parameter",
    "unsupported": "unsupported_parameter",
}


def error_body(error: RequestError) -> dict[str, Any]:
    """Return OpenAI's error object."""
    return {
        "error": {
            "message": str(error),
            "type": error.error_type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the error as an HTTP response."""
    all_headers = dict(headers or {})
    if error.retry_after_s is not None:
        all_headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        all_headers["www-authenticate"] = "Bearer"
    if error.status == 408:
        all_headers["connection"] = "close"  # the rest of the request may still come, at whatever pace
    return Response(
        msgspec.json.encode(error_body(error)),
        status_code=error.status,
        headers=all_headers,
        media_type="application/json",
    )


def client_gone() -> RequestError:
    """Return what is logged of a request whose client left; one that closed only its side may read it."""
    return RequestError(
        "the client closed its side of the connection before its answer was there, which counts as leaving; "
        "keep it open",
        status=499,  # nginx's number
        code="client_gone",
    )


def error_event(error: RequestError) -> bytes:
    """Return the error as the last event of a stream. No [DONE] follows: the answer is not complete."""
    return b"data: " + to_json(error_body(error)) + b"\n\n"


def internal_error() -> RequestError:
    """Return what a client learns of a failure of ours: nothing but that it was logged."""
    return RequestError(
        "the server failed to answer; its log has the details under this request's x-request-id",
        status=500,
        error_type="server_error",
        code="internal_error",
    )


def unavailable(message: str, code: str, *, retry_after_s: int = 1) -> RequestError:
    """Return a 503 that another replica, or this one a little later, may answer."""
    return RequestError(
        message, status=503, error_type="server_error", code=code, retry_after_s=retry_after_s
    )


def queue_full(message: str) -> RequestError:
    """Return a 429 for what may work a little later."""
    return RequestError(
        message, status=429, error_type="rate_limit_error", code="queue_full", retry_after_s=1
    )


def shutting_down() -> RequestError:
    """Return what clients learn of a request that comes or runs on past the drain."""
    return unavailable("the server is shutting down", "shutting_down")


def engine_dead(error: EngineDead) -> RequestError:
    """Return what clients learn when the engine is gone."""
    return unavailable(f"the engine stopped: {error}", "engine_dead")


def invalid_json(error: ValueError) -> RequestError:
    """Return the error of a body that cannot be parsed."""
    return RequestError(f"the body is not valid JSON: {error}", code="invalid_json")


def invalid_body(error: ValidationError) -> RequestError:
    """Return the first problem of a body as an error that names the field and what is wrong with it."""
    problem = error.errors(include_url=False, include_input=False)[0]
    kind, message = problem["type"], problem["msg"]
    param = (problem.get("ctx") or {}).get("param") or field_path(problem["loc"])
    code = _CODES.get(kind, "invalid_value")
    if param is None:
        return RequestError("the body must be a JSON object", code=code)
    if kind == "missing":
        text = f"`{param}` is required"
    elif kind in ("unsupported", "invalid"):
        text = f"`{param}` {message}"
    else:
        text = f"`{param}`: {message[:1].lower()}{message[1:]}"
    return RequestError(text, param=param, code=code)


def field_path(location: tuple[int | str, ...]) -> str | None:
    """Spell a field's place as a client would: ``messages[0].content``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".") or None
