import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from stoker_operator.cluster import inflight as module
from stoker_operator.cluster.inflight import HttpInFlightReader


@asynccontextmanager
async def pod_server() -> AsyncIterator[str]:
    ended = asyncio.Event()

    async def load(request: web.Request) -> web.Response:
        return web.json_response({"in_flight": 3, "host": request.headers["Connection"]})

    async def broken(request: web.Request) -> web.Response:
        return web.Response(status=503)

    async def silent(request: web.Request) -> web.Response:
        await ended.wait()
        return web.Response()

    async def huge(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 100_000)

    app = web.Application()
    for path, handler in (("/load", load), ("/broken", broken), ("/silent", silent), ("/huge", huge)):
        app.router.add_get(path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        ended.set()
        await runner.cleanup()


async def test_only_pods_that_answer_in_time_have_a_reading(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1000)
    async with pod_server() as url:
        reader = HttpInFlightReader(answer_within_s=0.5)
        urls = {path: f"{url}/{path}" for path in ("load", "broken", "silent", "huge")}
        bodies = await reader.read({**urls, "refused": "http://127.0.0.1:1/load"})
        await reader.close()
    assert bodies == {"load": b'{"in_flight": 3, "host": "close"}'}


async def test_nobody_to_ask_opens_no_session() -> None:
    reader = HttpInFlightReader()
    assert await reader.read({}) == {}
    assert reader._session is None
    await reader.close()
