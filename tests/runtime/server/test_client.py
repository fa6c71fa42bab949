from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from runtime_builders import make_request
from server_engine import DEADLINE_S, FakeEngine, connected_client

from stoker_runtime.errors import EngineDead, RequestError
from stoker_runtime.messages import (
    EngineFailed,
    EngineStats,
    FinishReason,
    RequestOutput,
    StepOutputs,
    encode_frame,
)
from stoker_runtime.server.client import EngineClient, Ticket


@asynccontextmanager
async def joined(engine: FakeEngine | None = None) -> AsyncIterator[tuple[EngineClient, FakeEngine]]:
    engine = engine or FakeEngine()
    client, tasks = await connected_client(engine)
    try:
        yield client, engine
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def is_healthy(client: EngineClient) -> bool:
    return client.is_healthy


async def tokens_of(ticket: Ticket) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    async with asyncio.timeout(DEADLINE_S):
        async for arrived in ticket:
            for index, output, _ in arrived:
                tokens.setdefault(index, []).extend(output.token_ids)
    return tokens


async def test_outputs_reach_the_ticket_they_belong_to() -> None:
    async with joined() as (client, _):
        first = client.submit([make_request([1, 2]), make_request([3])])
        second = client.submit([make_request([4, 5])])

        assert await tokens_of(second) == {0: [4, 5, 257]}
        assert await tokens_of(first) == {0: [1, 2, 257], 1: [3, 257]}
        assert client.num_live == 0


async def test_an_aborted_request_gives_nothing_more_and_the_others_go_on() -> None:
    engine = FakeEngine(reply=lambda request: [*request.prompt_token_ids * 3, 257])
    engine.may_step.clear()
    async with joined(engine) as (client, _):
        ticket = client.submit([make_request([1], max_tokens=50), make_request([2], max_tokens=50)])
        ticket.abort(0)
        await engine.until(lambda: len(engine.aborted) == 1)
        engine.may_step.set()

        assert await tokens_of(ticket) == {1: [2, 2, 2, 257]}


async def test_a_closed_ticket_aborts_all_that_has_not_ended_once() -> None:
    engine = FakeEngine()
    engine.may_step.clear()
    async with joined(engine) as (client, _):
        ticket = client.submit([make_request(), make_request()])
        ticket.close()
        ticket.close()
        await engine.until(lambda: len(engine.aborted) == 2)

        assert client.num_live == 0
        assert await tokens_of(ticket) == {}


async def test_a_finished_ticket_aborts_nothing() -> None:
    async with joined() as (client, engine):
        ticket = client.submit([make_request([1])])
        await tokens_of(ticket)
        ticket.close()
        await tokens_of(client.submit([make_request([2])]))  # commands are read in order

        assert engine.aborted == []


async def test_outputs_of_unknown_requests_are_dropped() -> None:
    async with joined() as (client, engine):
        stray = RequestOutput(request_id="stray", token_ids=[1], finish_reason=FinishReason.STOP)
        engine.send(StepOutputs(outputs=[stray], stats=EngineStats()))

        assert await tokens_of(client.submit([make_request([1])])) == {0: [1, 257]}


async def test_a_dead_engine_fails_every_ticket_after_what_it_had_sent() -> None:
    engine = FakeEngine()
    engine.may_step.clear()
    async with joined(engine) as (client, _):
        request = make_request([1])
        ticket = client.submit([request])
        await engine.until(lambda: len(engine.added) == 1)
        engine.send(
            StepOutputs(
                outputs=[RequestOutput(request_id=request.request_id, token_ids=[9])], stats=EngineStats()
            )
        )
        engine.close()
        async with asyncio.timeout(DEADLINE_S):
            await client.is_dead.wait()

        assert [(index, output.token_ids) for index, output, _ in await anext(ticket)] == [(0, [9])]
        with pytest.raises(EngineDead, match="its connection closed"):
            await anext(ticket)
        with pytest.raises(EngineDead):
            client.submit([make_request()])
        assert client.num_live == 0


async def test_a_failure_message_is_the_reason_of_death() -> None:
    async with joined() as (client, engine):
        engine.send(EngineFailed(reason="OutOfMemory", message="no room for 3 GiB of weights"))
        async with asyncio.timeout(DEADLINE_S):
            await client.is_dead.wait()

        assert client.failed == EngineFailed(reason="OutOfMemory", message="no room for 3 GiB of weights")
        assert str(client.dead) == "no room for 3 GiB of weights"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        pytest.param(b"\x02\x00\x00\x00\xff\xff", "cannot be read", id="not-msgpack"),
        pytest.param(b"\xff\xff\xff\xff", "frame of 4294967295 bytes", id="huge"),
        pytest.param(b"\x02\x00", "its connection closed", id="cut"),
        pytest.param(encode_frame(make_request()), "cannot be read", id="a-command"),
    ],
)
async def test_garbage_from_the_engine_ends_the_connection(data: bytes, match: str) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        reason = await EngineClient().run(*await asyncio.open_connection(sock=ours))

    assert match in reason


async def test_nothing_is_sent_before_the_engine_connects() -> None:
    client = EngineClient()
    client.shutdown()

    with pytest.raises(EngineDead, match="not connected"):
        client.submit([make_request()])


async def test_a_connection_that_closes_takes_no_more() -> None:
    async with joined() as (client, _):
        assert client._writer is not None
        client._writer.close()

        with pytest.raises(EngineDead, match="its connection closed"):
            client.submit([make_request()])
        assert client.num_live == 0


async def test_failing_all_tickets_aborts_their_requests() -> None:
    engine = FakeEngine()
    engine.may_step.clear()
    async with joined(engine) as (client, _):
        ticket = client.submit([make_request()])
        client.fail_all(RequestError("the server is shutting down", status=503))
        await engine.until(lambda: len(engine.aborted) == 1)

        with pytest.raises(RequestError, match="shutting down"):
            await anext(ticket)


async def test_a_silent_engine_is_unhealthy_until_it_speaks_again() -> None:
    now = 100.0
    ours, theirs = socket.socketpair()
    client = EngineClient(clock=lambda: now, silence_limit_s=30.0)
    running = asyncio.create_task(client.run(*await asyncio.open_connection(sock=ours)))
    engine = FakeEngine()
    serving = asyncio.create_task(engine.run(*await asyncio.open_connection(sock=theirs)))
    async with asyncio.timeout(DEADLINE_S):
        await client.is_ready.wait()
    now = 130.0
    assert is_healthy(client)
    now = 130.1
    assert not is_healthy(client)

    await tokens_of(client.submit([make_request([1])]))
    assert is_healthy(client)
    engine.close()
    await asyncio.gather(running, serving)


async def test_loading_may_take_long_and_death_is_unhealthy() -> None:
    now = 0.0
    client = EngineClient(clock=lambda: now)
    now = 1000.0
    assert is_healthy(client)
    client.die(EngineDead("first"))
    client.die(EngineDead("second"))
    assert not is_healthy(client)
    assert str(client.dead) == "first"
