"""The outermost layer of every HTTP request: its id, its count, its log line, and the last catch."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoker_runtime.server.problems import error_response, internal_error
from stoker_runtime.server.serving import Record, Serving

logger = logging.getLogger("stoker_runtime.request")

INFERENCE_PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
_PROBE_PATHS = frozenset({"/health", "/ready", "/metrics", "/load"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Entry:
    """ASGI middleware around all routes.

    Every answer carries x-request-id: the client's own when it is short and plain, else a new one. While the
    server drains, every answer closes its connection, so that clients move on. An exception that nothing else
    handled is logged and answered with a 500 that tells nothing of it.
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
        record = Record()
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

        is_inference = scope["method"] == "POST" and scope["path"] in INFERENCE_PATHS
        if is_inference:
            self._serving.entered()
        try:
            await self._app(scope, receive, send_marked)
        except Exception:
            logger.exception("a request failed", extra={"request_id": request_id, "path": scope["path"]})
            record.error = "internal_error"
            if status == 0:
                await error_response(internal_error())(scope, receive, send_marked)
        finally:
            if is_inference:
                self._serving.left()
            self._note(scope, request_id, record, status)

    def _note(self, scope: Scope, request_id: str, record: Record, status: int) -> None:
        """Count the request and write its log line; probes only at level debug."""
        handler = getattr(scope.get("route"), "path", "none")
        self._serving.metrics.answered(scope["method"], handler, status or 499)
        fields: dict[str, object] = {
            "request_id": request_id,
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
        fields |= {key: value for key in ("user", "error") if (value := getattr(record, key)) is not None}
        level = logging.DEBUG if scope["path"] in _PROBE_PATHS else logging.INFO
        logger.log(level, "request", extra=fields)
