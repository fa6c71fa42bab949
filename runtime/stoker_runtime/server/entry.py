"""The outermost layer of every HTTP request: its path, its key, its id, its count and its log line."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoker_runtime import logs
from stoker_runtime.errors import RequestError
from stoker_runtime.server import ignored
from stoker_runtime.server.cors import with_cors
from stoker_runtime.server.keys import ApiKeys
from stoker_runtime.server.paths import Paths, needs_key
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
_PROBE_PATHS = frozenset({"/health", "/ready", "/metrics", "/load", "/drain"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_REQUEST_ID_HEADER = "x-request-id"


@dataclass(eq=False)
class _Visit:
    """One request on its way through the layers below.

    Args:
        asked_method: as the client sent it.
        asked_path: likewise; the path of its scope is the one that it means.
        record: for its log line.
        purpose: what its limits depend on.
        refusal: why it goes no further; None lets it in.
        status: of its answer; 0 while there is none.
    """

    asked_method: str
    asked_path: str
    record: Record
    purpose: Purpose
    refusal: RequestError | None
    status: int = 0


class Entry:
    """ASGI middleware around all routes.

    Every answer carries x-request-id: the client's own when it is short and plain, else a new one. While the
    server drains, every answer closes its connection, so that clients move on. What has no key, and what the
    queue has no room for, is answered before its body is read. An exception that nothing else handled is
    logged and answered with a 500 that tells nothing of it. HEAD is GET without the body.
    """

    def __init__(self, app: ASGIApp, serving: Serving, paths: Paths) -> None:
        self._app = app
        self._serving = serving
        self._paths = paths
        self._keys = ApiKeys(serving.config.api_keys)
        # Around all that answers, so that a page can read refusals as well, and within what counts and logs.
        self._answer = with_cors(self._admit, serving.config, (_REQUEST_ID_HEADER, ignored.HEADER))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked_id = Headers(scope=scope).get(_REQUEST_ID_HEADER, "")
        record = Record(asked_id if _REQUEST_ID.fullmatch(asked_id) else uuid.uuid4().hex)
        token = logs.request_id.set(record.request_id)
        visit, scope = self._visit(scope, record)
        self._serving.entered(visit.purpose, record)
        try:
            await self._answer(scope, receive, self._marked(visit, send))
        finally:
            self._serving.left(visit.purpose, record)
            self._note(scope, visit)
            logs.request_id.reset(token)

    def _visit(self, scope: Scope, record: Record) -> tuple[_Visit, Scope]:
        """Decide what a request is for and whether it may come in; return its scope as the routes see it."""
        method, path = scope["method"], self._paths.meant(scope["path"])
        purpose = _PURPOSES.get(path, "operations") if method == "POST" else "operations"
        refusal = None
        if method != "OPTIONS" and needs_key(path):  # a browser asks whether it may ask without a key
            refusal = self._keys.refusal(scope["headers"])
        if refusal is None:
            refusal = self._serving.refusal(purpose)
            if refusal is not None and purpose == "inference":
                self._serving.metrics.rejected()
        if refusal is not None:
            purpose, record.error = "operations", refusal.code
        visit = _Visit(method, scope["path"], record, purpose, refusal)
        state = {**scope.get("state", {}), "record": record, "arrival_s": time.monotonic(), "visit": visit}
        changes = {"path": path, "method": "GET" if method == "HEAD" else method, "state": state}
        return visit, {**scope, **changes}

    def _marked(self, visit: _Visit, send: Send) -> Send:
        """Return how the layers below send, with the headers that every answer has."""

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[_REQUEST_ID_HEADER] = visit.record.request_id
                if visit.record.ignored:
                    headers[ignored.HEADER] = ignored.header_value(visit.record.ignored)
                if self._serving.is_draining:
                    headers["connection"] = "close"
            elif visit.asked_method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        return send_marked

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer why not; answer what fails as well."""
        visit: _Visit = scope["state"]["visit"]
        app = self._app if visit.refusal is None else error_response(visit.refusal)
        try:
            await app(scope, receive, send)
        except Exception:
            logger.exception("a request failed", extra={"path": scope["path"]})
            visit.record.error = "internal_error"
            if visit.status == 0:
                await error_response(internal_error())(scope, receive, send)

    def _note(self, scope: Scope, visit: _Visit) -> None:
        """Count the request and write its log line; probes only at level debug."""
        path: str = scope["path"]
        record, status = visit.record, visit.status or 499
        handler = getattr(scope.get("route"), "path", path if path in self._paths.known else "none")
        self._serving.metrics.answered(visit.asked_method, handler, status)
        fields: dict[str, object] = {
            "request_id": record.request_id,
            "method": visit.asked_method,
            "path": visit.asked_path,
            "status": status,
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
        if record.ignored:
            fields["ignored"] = ignored.logged(record.ignored)
        level = logging.DEBUG if path in _PROBE_PATHS else logging.INFO
        logger.log(level, "request", extra=fields)
