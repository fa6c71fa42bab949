"""A flood: what the queue does not hold is refused, costs nothing, and hinders nobody who is in it."""

from __future__ import annotations

import asyncio
import gc
import sys

from server_engine import FakeEngine, Stack, make_server_config, running_stack

NUM_REFUSED = 10_000
BATCH = 50
COMPLETION = {"model": "tiny", "prompt": "a long enough prompt " * 8, "max_tokens": 2}


async def refused(stack: Stack, num_requests: int) -> None:
    """Send requests that find the queue full, many at once."""
    for _ in range(num_requests // BATCH):
        posts = [stack.http.post("/v1/completions", json=COMPLETION) for _ in range(BATCH)]
        answers = await asyncio.gather(*posts)
        assert {answer.status_code for answer in answers} == {429}
        assert {answer.headers["retry-after"] for answer in answers} == {"1"}


def allocated_blocks() -> int:
    """Count the pieces of memory that Python holds; unlike tracing them it costs nothing."""
    gc.collect()
    return sys.getallocatedblocks()


async def test_ten_thousand_requests_beyond_the_queue_are_refused_and_leave_nothing_behind() -> None:
    engine = FakeEngine(max_running=4)
    engine.may_step.clear()
    async with running_stack(engine, config=make_server_config(max_queue=12)) as stack:
        posts = [stack.http.post("/v1/completions", json=COMPLETION) for _ in range(16)]
        queued = [asyncio.create_task(post) for post in posts]
        await engine.until(lambda: engine.num_live == 16)
        await refused(stack, 20 * BATCH)  # fills what client, server and Python keep for reuse
        before = allocated_blocks()
        await refused(stack, NUM_REFUSED)
        growth = allocated_blocks() - before
        assert len(engine.added) == 16
        engine.may_step.set()
        answers = await asyncio.gather(*queued)

    assert [answer.status_code for answer in answers] == [200] * 16
    assert growth < NUM_REFUSED // 20
