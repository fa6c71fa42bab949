import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme
from aiohttp import web
from fakeapi.client import get, put
from fakeapi.core import FakeApi
from fakeapi.faults import Fault, FaultAt
from fakeapi.server import FakeServer

from stoker_operator.cluster import transport as module
from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import ApiError, ApiUnreachable, Throttled, Unauthorized
from stoker_operator.cluster.resources import PODS
from stoker_operator.cluster.transport import Credentials, HttpTransport

POD = {"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [{"name": "engine"}]}}


@asynccontextmanager
async def connected(
    server: FakeServer, token: str | None = None, tls: ssl.SSLContext | None = None, timeout_s: float = 5.0
) -> AsyncIterator[KubeClient]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with server.running():
        transport = HttpTransport(lambda: Credentials(server.url, headers, tls), request_timeout_s=timeout_s)
        try:
            yield KubeClient(transport)
        finally:
            await transport.close()


async def test_requests_travel_over_http() -> None:
    api = FakeApi()
    async with connected(FakeServer(api)) as client:
        await client.create(PODS, POD)
        page = await client.list_page(PODS, None, "", 10)
    assert [item["metadata"]["name"] for item in page.items] == ["p"]
    assert get(api, "pods", "p") is not None


async def test_a_watch_delivers_events_as_they_happen() -> None:
    api = FakeApi()
    async with connected(FakeServer(api)) as client:
        events = client.watch(PODS, None, "", str(api.storage.version), 30)
        put(api, "pods", POD)
        first = await anext(events)
        put(api, "pods", {**POD, "status": {"phase": "Running"}})
        second = await anext(events)
        await events.aclose()
    assert (first.type, second.type) == ("ADDED", "MODIFIED")
    assert second.object["status"]["phase"] == "Running"


async def test_a_watch_may_bring_objects_far_beyond_a_read_buffer() -> None:
    api = FakeApi()
    async with connected(FakeServer(api)) as client:
        events = client.watch(PODS, None, "", str(api.storage.version), 30)
        put(api, "pods", {**POD, "status": {"message": "x" * 600_000}})
        event = await anext(events)
        await events.aclose()
    assert len(event.object["metadata"]) > 0


async def test_tls_verifies_the_server() -> None:
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    async with connected(FakeServer(FakeApi(), tls=theirs), tls=ours) as client:
        assert (await client.create(PODS, POD))["metadata"]["uid"]
    async with connected(FakeServer(FakeApi(), tls=theirs), tls=ssl.create_default_context()) as client:
        with pytest.raises(ApiUnreachable, match="certificate verify failed"):
            await client.create(PODS, POD)


async def test_a_rotated_token_is_read_again() -> None:
    tokens = ["old"]
    server = FakeServer(FakeApi(), token="old")
    async with server.running():
        transport = HttpTransport(
            lambda: Credentials(server.url, {"Authorization": f"Bearer {tokens[-1]}"}), request_timeout_s=5.0
        )
        client = KubeClient(transport)
        try:
            await client.create(PODS, POD)
            server.token = "new"
            tokens.append("new")
            page = await client.list_page(PODS, None, "", 10)
            assert len(page.items) == 1
            server.token = "newest"
            with pytest.raises(Unauthorized):
                await client.list_page(PODS, None, "", 10)
        finally:
            await transport.close()


async def test_throttling_says_for_how_long() -> None:
    api = FakeApi()
    api.injector = FaultAt(0, Fault.THROTTLED)
    async with connected(FakeServer(api)) as client:
        with pytest.raises(Throttled) as caught:
            await client.create(PODS, POD)
    assert caught.value.retry_after_s == 1.0


@pytest.mark.parametrize("fault", [Fault.RESET_BEFORE, Fault.RESET_AFTER])
async def test_a_reset_connection_is_unreachable(fault: Fault) -> None:
    api = FakeApi()
    api.injector = FaultAt(0, fault)
    async with connected(FakeServer(api)) as client:
        with pytest.raises(ApiUnreachable):
            await client.create(PODS, POD)
    assert (get(api, "pods", "p") is not None) == (fault is Fault.RESET_AFTER)


@pytest.mark.parametrize("fault", [Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER])
async def test_a_server_that_does_not_answer_times_out(fault: Fault) -> None:
    api = FakeApi()
    api.injector = FaultAt(0, fault)
    async with connected(FakeServer(api), timeout_s=0.2) as client:
        with pytest.raises(ApiUnreachable, match="Timeout"):
            await client.create(PODS, POD)
    assert (get(api, "pods", "p") is not None) == (fault is Fault.TIMEOUT_AFTER)


async def test_a_refused_connection_is_unreachable() -> None:
    server = FakeServer(FakeApi())
    async with connected(server) as client:
        await client.list_page(PODS, None, "", 10)
    transport = HttpTransport(lambda: Credentials(server.url))
    try:
        with pytest.raises(ApiUnreachable):
            await KubeClient(transport).list_page(PODS, None, "", 10)
    finally:
        await transport.close()


async def test_a_silent_watch_is_given_up() -> None:
    server = FakeServer(FakeApi())
    async with server.running():
        transport = HttpTransport(lambda: Credentials(server.url), idle_timeout_s=0.2)
        try:
            with pytest.raises(ApiUnreachable, match="Timeout"):
                await anext(KubeClient(transport).watch(PODS, None, "", "1", 30))
        finally:
            await transport.close()


@asynccontextmanager
async def proxied(status: int, body: bytes) -> AsyncIterator[KubeClient]:
    """A client of something that is no API server and answers everything alike."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    transport = HttpTransport(lambda: Credentials(f"http://127.0.0.1:{runner.addresses[0][1]}"))
    try:
        yield KubeClient(transport)
    finally:
        await transport.close()
        await runner.cleanup()


async def test_a_watch_that_is_refused_in_plain_text_shows_it() -> None:
    async with proxied(502, b"<html>bad gateway</html>") as client:
        with pytest.raises(ApiError, match="502 : <html>bad gateway") as caught:
            await anext(client.watch(PODS, None, "", "1", 30))
    assert caught.value.code == 502


async def test_a_page_of_somebody_else_is_no_answer() -> None:
    async with proxied(200, b"<html>please log in</html>\n") as client:
        with pytest.raises(ApiUnreachable, match="please log in"):
            await anext(client.watch(PODS, None, "", "1", 30))
        with pytest.raises(ApiUnreachable, match="please log in"):
            await client.list_page(PODS, None, "", 10)


async def test_a_line_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 1024)
    async with proxied(200, b"x" * 100_000) as client:
        with pytest.raises(ApiUnreachable, match="LineTooLong"):
            await anext(client.watch(PODS, None, "", "1", 30))


async def test_every_call_is_observed() -> None:
    seen: list[tuple[str, str, int]] = []

    class Observer:
        def request_done(self, method: str, path: str, code: int, seconds: float) -> None:
            assert seconds >= 0
            seen.append((method, path, code))

    api = FakeApi()
    api.injector = FaultAt(1, Fault.RESET_BEFORE)
    server = FakeServer(api)
    async with server.running():
        transport = HttpTransport(lambda: Credentials(server.url), observer=Observer())
        client = KubeClient(transport)
        try:
            await client.create(PODS, POD)
            with pytest.raises(ApiUnreachable):
                await client.create(PODS, POD)
        finally:
            await transport.close()
    path = "/api/v1/namespaces/default/pods"
    assert seen == [("POST", path, 201), ("POST", path, 0)]


async def test_cancelling_a_watch_closes_its_connection() -> None:
    api = FakeApi()
    server = FakeServer(api)
    async with connected(server) as client:
        watch = client.watch(PODS, None, "", str(api.storage.version), 30)
        task = asyncio.ensure_future(anext(watch))
        put(api, "pods", POD)
        await task
        await watch.aclose()
        assert (await client.list_page(PODS, None, "", 10)).items
