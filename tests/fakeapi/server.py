"""The fake API server over HTTP on loopback, with the discovery documents that kopf reads."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from fakeapi.core import FakeApi
from fakeapi.kinds import KINDS

from stoker_operator.cluster.errors import ApiUnreachable


class FakeServer:
    """Serves a ``FakeApi``.

    Args:
        api: the server's contents.
        token: the bearer token to ask for; None lets everybody in. May be changed while it runs.
        tls: the server's certificate; None serves plain HTTP.
    """

    def __init__(self, api: FakeApi, token: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.api = api
        self.token = token
        self.url = ""
        self._tls = tls
        self._closed = asyncio.Event()
        api.hang = self._hang

    async def _hang(self) -> None:
        await self._closed.wait()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["FakeServer"]:
        """Listen while the block runs; ``url`` says where."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"{'https' if self._tls else 'http'}://{host}:{port}"
        try:
            yield self
        finally:
            self._closed.set()
            self.api.break_watches()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            status = {"kind": "Status", "code": 401, "reason": "Unauthorized", "message": "Unauthorized"}
            return web.json_response(status, status=401)
        document = discovery(request.path)
        if document is not None:
            return web.json_response(document)
        try:
            if request.query.get("watch") == "true":
                return await self._stream(request)
            return await self._reply(request)
        except ApiUnreachable:
            assert request.transport is not None
            request.transport.abort()
            raise asyncio.CancelledError from None

    async def _reply(self, request: web.Request) -> web.Response:
        body = await request.read()
        reply = await self.api.request(
            request.method, request.path, dict(request.query), body or None, request.content_type
        )
        headers = {} if reply.retry_after is None else {"Retry-After": reply.retry_after}
        return web.Response(
            status=reply.code, body=reply.body, headers=headers, content_type="application/json"
        )

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionResetError):  # the client is gone
            async with contextlib.aclosing(self.api.stream(request.path, dict(request.query))) as lines:
                async for line in lines:
                    await response.write(line)
            await response.write_eof()
        return response


def discovery(path: str) -> dict[str, Any] | None:
    """The discovery document at a path, if there is one."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    groups = {kind.group: kind.version for kind in KINDS if kind.group}
    if path == "/apis":
        versions = {
            group: {"groupVersion": f"{group}/{version}", "version": version}
            for group, version in groups.items()
        }
        items = [{"name": name, "versions": [v], "preferredVersion": v} for name, v in versions.items()]
        return {"kind": "APIGroupList", "groups": items}
    for kind in KINDS:
        if path == kind.prefix:
            found = [_resource(k.kind, k.plural, k.namespaced) for k in KINDS if k.prefix == path]
            return {"kind": "APIResourceList", "groupVersion": kind.api_version, "resources": found}
    return None


def _resource(kind: str, plural: str, namespaced: bool) -> dict[str, Any]:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "kind": kind,
        "name": plural,
        "singularName": kind.lower(),
        "namespaced": namespaced,
        "verbs": verbs,
    }
