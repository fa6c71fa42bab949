import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from stoker_operator.cluster import inflight as module
from stoker_operator.cluster.inflight import HttpInFlightReader, PodAnswer, Question

LOAD = b'{"in_flight": 3, "host": "close"}'
DRAINED = b'{"in_flight": 2, "host": "close"}'


@asynccontextmanager
async def pod_server(told: list[str] | None = None) -> AsyncIterator[str]:
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

    async def drain(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer uid-1":
            return web.Response(status=401)
        if told is not None:
            told.append(request.path)
        return web.json_response({"in_flight": 2, "host": request.headers["Connection"]})

    async def elsewhere(request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("/load")

    app = web.Application()
    for path, handler in (("/load", load), ("/broken", broken), ("/silent", silent), ("/huge", huge)):
        app.router.add_get(path, handler)
    for path, handler in (
        *(("/drain", drain), ("/broken", broken), ("/silent", silent), ("/huge", huge)),
        ("/elsewhere", elsewhere),
    ):
        app.router.add_post(path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        ended.set()
        await runner.cleanup()


async def asked(**questions: Question) -> dict[str, PodAnswer]:
    reader = HttpInFlightReader(answer_within_s=0.5)
    try:
        return await reader.read(questions)
    finally:
        await reader.close()


async def test_only_pods_that_answer_in_time_have_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1000)
    async with pod_server() as url:
        paths = ("load", "broken", "silent", "huge")
        answers = await asked(
            **{path: Question(f"{url}/{path}") for path in paths},
            refused=Question("http://127.0.0.1:1/load"),
        )
    assert answers == {
        "load": PodAnswer(LOAD),
        "broken": PodAnswer(None, "it answers with status 503"),
        "silent": PodAnswer(None, "no answer within 0.5 s"),
        "huge": PodAnswer(None, "an answer of more than 1000 bytes"),
        "refused": PodAnswer(None, "Connection refused"),
    }


async def test_a_pod_that_is_told_to_drain_answers_with_its_load() -> None:
    told: list[str] = []
    async with pod_server(told) as url:
        answers = await asked(pod=Question(f"{url}/load", f"{url}/drain", "uid-1"))
    assert (answers["pod"], told) == (PodAnswer(DRAINED), ["/drain"])


@pytest.mark.parametrize("path", ["absent", "drain", "broken", "huge", "elsewhere"])
async def test_a_pod_that_does_not_take_the_drain_is_still_asked(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1000)
    told: list[str] = []
    async with pod_server(told) as url:
        answers = await asked(pod=Question(f"{url}/load", f"{url}/{path}", "another pod's uid"))
    assert (answers["pod"], told) == (PodAnswer(LOAD), [])


async def test_a_pod_whose_drain_hangs_has_no_reading_and_holds_up_no_other() -> None:
    async with pod_server() as url:
        answers = await asked(
            hanging=Question(f"{url}/load", f"{url}/silent", "uid-1"),
            other=Question(f"{url}/load", f"{url}/drain", "uid-1"),
            gone=Question("http://127.0.0.1:1/load", "http://127.0.0.1:1/drain", "uid-1"),
        )
    assert answers == {
        "hanging": PodAnswer(None, "no answer within 0.5 s"),
        "other": PodAnswer(DRAINED),
        "gone": PodAnswer(None, "Connection refused"),
    }


async def test_a_server_that_closes_the_connection_is_named_so() -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        answers = await asked(pod=Question(f"http://127.0.0.1:{port}/load"))
    assert answers == {"pod": PodAnswer(None, "the connection was closed")}


async def test_nobody_to_ask_opens_no_session() -> None:
    reader = HttpInFlightReader()
    assert await reader.read({}) == {}
    assert reader._session is None
    await reader.close()
