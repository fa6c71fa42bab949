"""The outermost layer of every HTTP request: its id, its count, its log line, and the last catch."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoker_runtime import logs
from stoker_runtime.server.problems import error_response, internal_error
from stoker_runtime.server.serving import Purpose, Record, Serving

logger = logging.getLogger("stoker_runtime.request")

_PURPOSES: dict[str, Purpose] = {
    "/v1/completions": "inference",
    "/v1/chat/completions": "inference",
    "/tokenize": "tokens",
    "/detokenize": "tokens",
}
_LOGGED = ("user", "metadata", "safety_identifier", "prompt_cache_key", "error")  # where a request has them
_PROBE_PATHS = frozenset({"/health", "/ready", "/metrics", "/load"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Entry:
    """ASGI middleware around all routes.

    Every answer carries x-request-id: the client's own when it is short and plain, else a new one. While the
    server drains, every answer closes its connection, so that clients move on. What the queue has no room for
    is answered before its body is read. An exception that nothing else handled is logged and answered with a
    500 that tells nothing of it.
    """

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app = app
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        record = Record(request_id)
        token = logs.request_id.set(request_id)
        scope.setdefault("state", {}).update(record=record, arrival_s=time.monotonic())
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if self._serving.is_draining:
                    headers["connection"] = "close"
            await send(message)

        purpose = _PURPOSES.get(scope["path"], "operations") if scope["method"] == "POST" else "operations"
        refusal = self._serving.refusal(purpose)
        app = self._app
        if refusal is not None:
            app, purpose, record.error = error_response(refusal), "operations", refusal.code
        self._serving.entered(purpose, record)
        try:
            await app(scope, receive, send_marked)
        except Exception:
            logger.exception("a request failed", extra={"path": scope["path"]})
            record.error = "internal_error"
            if status == 0:
                await error_response(internal_error())(scope, receive, send_marked)
        finally:
            self._serving.left(purpose, record)
            self._note(scope, record, status)
            logs.request_id.reset(token)

    def _note(self, scope: Scope, record: Record, status: int) -> None:
        """Count the request and write its log line; probes only at level debug."""
        path: str = scope["path"]
        handler = getattr(scope.get("route"), "path", path if path in _PURPOSES else "none")
        self._serving.metrics.answered(scope["method"], handler, status or 499)
        fields: dict[str, object] = {
            "request_id": record.request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status or 499,
            "duration_s": round(time.monotonic() - scope["state"]["arrival_s"], 4),
        }
        if record.usage is not None:
            fields |= {
                "stream": record.is_stream,
                "prompt_tokens": record.usage.prompt_tokens,
                "output_tokens": record.usage.output_tokens,
                "cached_tokens": record.usage.cached_tokens,
                "finish_reasons": record.finish_reasons,
                "ttft_s": record.ttft_s,
            }
        fields |= {key: value for key in _LOGGED if (value := getattr(record, key)) is not None}
        level = logging.DEBUG if scope["path"] in _PROBE_PATHS else logging.INFO
        logger.log(level, "request", extra=fields)
