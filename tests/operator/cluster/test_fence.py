"""Writes of an operator that leads for so long and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

import pytest
from virtual_time import pass_time, run_virtual

from stoker_operator.cluster.client import Reply
from stoker_operator.cluster.fence import FencedTransport, NotLeading


class Server:
    """Answers each request after a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.done: list[str] = []

    async def request(
        self, method: str, path: str, params: Mapping[str, str], body: bytes | None, content_type: str
    ) -> Reply:
        await pass_time(self.seconds)
        self.done.append(f"{method} {path}")
        return Reply(200, b"{}")

    async def stream(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        yield b"{}"


def test_reads_are_everybodys_and_writes_the_leaders() -> None:
    async def main() -> None:
        server, left_s = Server(0.1), 0.0
        fenced = FencedTransport(server, lambda: left_s)
        await fenced.request("GET", "/pods", {}, None, "")
        for method in ("POST", "PATCH", "PUT", "DELETE"):
            with pytest.raises(NotLeading, match=f"{method} /pods: not sent"):
                await fenced.request(method, "/pods", {}, b"{}", "")
        left_s = 1.0
        await fenced.request("POST", "/pods", {}, b"{}", "")
        assert server.done == ["GET /pods", "POST /pods"]

    run_virtual(main())


def test_a_write_ends_with_the_term() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        fenced = FencedTransport(Server(60.0), lambda: 2.0)
        with pytest.raises(NotLeading, match="no answer for as long as"):
            await fenced.request("POST", "/pods", {}, b"{}", "")
        assert loop.time() == 2.0

    run_virtual(main())


def test_a_write_that_was_sent_is_waited_for_though_its_pass_is_cancelled() -> None:
    async def main() -> None:
        server = Server(1.0)
        fenced = FencedTransport(server, lambda: 5.0)
        task = asyncio.create_task(fenced.request("POST", "/pods", {}, b"{}", ""))
        await pass_time(0.5)
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), server.done) == (True, [])
        await fenced.settle()
        assert server.done == ["POST /pods"]

    run_virtual(main())
