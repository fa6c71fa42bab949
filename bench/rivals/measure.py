"""Sends the workloads to one ready server and says what came back."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from loadgen import client
from loadgen.client import Target
from loadgen.process import NAME, Server
from loadgen.prompts import prompt
from loadgen.results import Outcome, Summary, distribution, summarize, token_gaps_s
from loadgen.run import Load, closed_loop
from rivals.workloads import (
    LONG_PROMPT_TOKENS,
    NUM_STREAMS,
    STREAM_OUTPUT_TOKENS,
    Workload,
)

TIMEOUT_S = 300.0


async def send_all(server: Server, workload: Workload) -> Summary:
    """Send a workload's requests in order, as many at once as it says."""
    zero_s = time.perf_counter()
    target = Target(server.url, NAME, timeout_s=TIMEOUT_S)
    async with client.session(keep_alive=False) as http:

        async def send(index: int) -> Outcome:
            job = workload.jobs[index]
            wanted = replace(target, output_tokens=job.output_tokens)
            return await client.send(http, wanted, job.prompt, index, zero_s)

        load = Load(num_requests=len(workload.jobs), concurrency=workload.concurrency)
        outcomes = await closed_loop(send, load, asyncio.Event())
    return summarize(outcomes, time.perf_counter() - zero_s)


async def first_token_s(server: Server) -> float:
    """Return the time to the first token of a short prompt.

    Raises:
        RuntimeError: the request failed.
    """
    async with client.session(keep_alive=False) as http:
        target = Target(server.url, NAME, output_tokens=4, timeout_s=TIMEOUT_S)
        outcome = await client.send(http, target, prompt(16, 1, 0), 0, time.perf_counter())
    if outcome.ttft_s is None:
        raise RuntimeError(f"the first request failed: {outcome.detail}")
    return outcome.ttft_s


async def long_prompt_stall(server: Server, seed: int) -> dict[str, float]:
    """Let a long prompt arrive while streams decode, and compare the gaps between their tokens.

    Returns:
        `median_s` of the gaps before it arrived, `p99_s` of the gaps from then to its first token, their
        `ratio`, and the long prompt's own `ttft_s`.

    Raises:
        RuntimeError: the streams ended before the long prompt's first token, or a request failed.
    """
    started = asyncio.Semaphore(0)
    zero_s = time.perf_counter()
    async with client.session(keep_alive=False) as http:

        def stream(
            index: int, tokens: int, output: int, on_text: Callable[[], None] | None
        ) -> asyncio.Task[Outcome]:
            target = Target(server.url, NAME, output_tokens=output, timeout_s=TIMEOUT_S)
            text = prompt(tokens, seed, index)
            return asyncio.create_task(client.send(http, target, text, index, zero_s, on_text))

        streams = [stream(i, 64, STREAM_OUTPUT_TOKENS, started.release) for i in range(NUM_STREAMS)]
        for _ in streams:
            await started.acquire()
        await asyncio.sleep(2.0)  # gaps to compare with
        arrived_s = time.perf_counter() - zero_s
        long = await stream(NUM_STREAMS, LONG_PROMPT_TOKENS, 4, None)
        outcomes = await asyncio.gather(*streams)
    failed = [outcome for outcome in (long, *outcomes) if outcome.failure is not None]
    if failed or long.ttft_s is None:
        raise RuntimeError(f"a request failed: {failed[0].detail if failed else long.detail}")
    before, during = _gaps(outcomes, arrived_s, arrived_s + long.ttft_s)
    spread = distribution(during)
    if spread is None or not before:
        raise RuntimeError("no stream's text shows the gaps between its tokens")
    if min(outcome.started_s + outcome.e2e_s for outcome in outcomes) < arrived_s + long.ttft_s:
        raise RuntimeError("the streams ended before the long prompt's first token")
    median_s = statistics.median(before)
    return {
        "median_s": median_s,
        "p99_s": spread.p99,
        "ratio": spread.p99 / median_s,
        "ttft_s": long.ttft_s,
    }


def _gaps(outcomes: list[Outcome], arrived_s: float, answered_s: float) -> tuple[list[float], list[float]]:
    """Gaps between tokens that ended before the long prompt arrived, and while it was computed."""
    before, during = [], []
    for at_s, gap_s in token_gaps_s(outcomes):
        if at_s < arrived_s:
            before.append(gap_s)
        elif at_s - gap_s < answered_s:
            during.append(gap_s)
    return before, during
