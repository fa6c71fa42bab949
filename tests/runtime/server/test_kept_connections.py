"""A pod leaves while clients with pools are busy: real processes, kept connections, nothing is retried."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from server_process import DEADLINE_S, ServerProcess, make_model_folder, server_process, until_status

pytestmark = pytest.mark.slow

LOAD_CLIENT = Path(__file__).resolve().parents[3] / "bench" / "load.py"
KEY = "6f1c2a90-0b7e-4f6e-9a55-0d9f7c1f2b3e"
BEARER = {"authorization": f"Bearer {KEY}"}
SHORT = {"model": "tiny", "prompt": "a", "max_tokens": 2, "ignore_eos": True}
STREAM = {**SHORT, "max_tokens": 60, "stream": True}


class ServiceResolver(AbstractResolver):
    """Leads new connections to the server that is in the Service now, and leaves open ones where they are."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        result = ResolveResult(
            hostname=host, host="127.0.0.1", port=self.port, family=socket.AF_INET, proto=0, flags=0
        )
        return [result]

    async def close(self) -> None:
        pass


@dataclass
class Clients:
    """Clients in closed loops over one pool of connections.

    Args:
        service: where new connections go.
        num_answered: so far.
        failures: what went wrong.
        should_end: begin no more requests.
    """

    service: ServiceResolver
    num_answered: int = 0
    failures: list[str] = field(default_factory=list)
    should_end: bool = False
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, *bodies: dict[str, Any]) -> None:
        """Send each body again and again until `should_end`."""
        connector = aiohttp.TCPConnector(resolver=self.service, use_dns_cache=False)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as tasks:
            for body in bodies:
                tasks.create_task(self._loop(session, body))

    async def until_answered(self, num_more: int) -> None:
        """Wait for so many more answers."""
        wanted = self.num_answered + num_more
        async with asyncio.timeout(DEADLINE_S):
            while self.num_answered < wanted:
                self._ended.clear()
                await self._ended.wait()

    async def _loop(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
        while not self.should_end:
            try:
                async with session.post("http://service/v1/completions", json=body) as response:
                    text = await response.text()
                if response.status != 200 or (body.get("stream") and "[DONE]" not in text):
                    self.failures.append(f"{response.status} {text}")
            except (aiohttp.ClientError, OSError) as error:
                self.failures.append(repr(error))
                return
            self.num_answered += 1
            self._ended.set()


async def num_answered(http: Any) -> int:
    """Completions that a server has answered."""
    lines = (await http.get("/metrics")).text.splitlines()
    found = [line for line in lines if line.startswith("http_requests_total{") and "completions" in line]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in found)


async def until_empty(http: Any) -> None:
    """Tell a server to drain until it has nothing in flight, as the operator does."""
    pause = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S):
        while True:
            answer = await http.post("/drain", headers={**BEARER, "connection": "close"})
            assert answer.status_code == 200
            assert answer.json()["draining"] is True
            if answer.json()["in_flight"] == 0:
                return
            try:
                await asyncio.wait_for(pause.wait(), 0.05)
            except TimeoutError:
                continue


async def test_busy_clients_with_a_pool_leave_a_draining_server_and_lose_nothing(tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "model")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    bodies = [SHORT] * 4 + [STREAM] * 3
    async with (
        server_process(model, tmp_path / "a", drain_key=KEY, shutdown_delay_s=0.5) as (old, old_http),
        server_process(model, tmp_path / "b", drain_key=KEY) as (_, new_http),
    ):
        for http in (old_http, new_http):
            await until_status(http, "/ready", 200)
        assert old_http.base_url.port is not None
        assert new_http.base_url.port is not None
        clients = Clients(ServiceResolver(old_http.base_url.port))
        running = asyncio.create_task(clients.run(*bodies))
        await clients.until_answered(50)

        clients.service.port = new_http.base_url.port
        num_before = await num_answered(old_http)
        await until_empty(old_http)
        num_late = await num_answered(old_http) - num_before
        old.terminate()
        assert await old.until_ended() == 0
        await clients.until_answered(50)
        clients.should_end = True
        await running
        assert await num_answered(new_http) > 0

    assert clients.failures == []
    # What ran when the drain began, and then one more on each connection that was kept.
    assert num_late <= 2 * len(bodies)
    assert messages(old)[-1] == "drained"


async def test_a_server_that_is_asked_for_its_load_alone_keeps_its_clients(tmp_path: Path) -> None:
    """What POST /drain is for: without it, clients with pools stay for as long as they are busy."""
    model = make_model_folder(tmp_path / "model")
    async with server_process(model, tmp_path) as (_, http):
        await until_status(http, "/ready", 200)
        assert http.base_url.port is not None
        clients = Clients(ServiceResolver(http.base_url.port))
        running = asyncio.create_task(clients.run(SHORT, STREAM))
        await clients.until_answered(10)
        clients.service.port = 1  # nothing listens there: a new connection would fail
        await clients.until_answered(50)
        clients.should_end = True
        await running
    assert clients.failures == []


@pytest.mark.parametrize("options", [("--keep-alive",), ()], ids=["kept", "new"])
async def test_the_load_client_of_the_scenarios_sees_no_drain(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    model = make_model_folder(tmp_path / "model")
    async with server_process(model, tmp_path, drain_key=KEY) as (_, http):
        await until_status(http, "/ready", 200)
        target = ("--url", str(http.base_url), "--model", "tiny", "--concurrency", "4", "--records")
        command = (str(LOAD_CLIENT), *target, "--output-tokens", "5", "--until-eof", *options)
        load = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        await until_looked(load, lambda found: len(found["e2e_s"]) > 20)
        assert (await http.post("/drain", headers=BEARER)).status_code == 200
        told = await until_looked(load, lambda found: True)
        await until_looked(load, lambda found: len(found["e2e_s"]) > len(told["e2e_s"]) + 20)
        async with asyncio.timeout(DEADLINE_S):
            out, _ = await load.communicate(b"")
    report = json.loads(out)
    assert [outcome for outcome in report["records"] if outcome["failure"]] == []
    assert report["load"]["keep_alive"] is bool(options)


async def until_looked(
    load: asyncio.subprocess.Process, is_enough: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Ask the load client how far it is until that is enough."""
    assert load.stdin is not None
    assert load.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        while True:
            load.stdin.write(b"\n")
            found: dict[str, Any] = json.loads(await load.stdout.readline())
            if is_enough(found):
                return found


def messages(server: ServerProcess) -> list[object]:
    return [line["message"] for line in server.lines if line["message"] in ("draining", "drained")]
