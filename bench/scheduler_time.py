"""Time the scheduler on this machine: `python bench/scheduler_time.py`. No model; only decodes are timed.

Prints the median milliseconds per step that planning and taking in results cost, one step at a time and with
two steps in flight as asynchronous scheduling has them.
"""

from __future__ import annotations

import statistics
import time
from collections import deque

import click

from stoker_runtime.config import EngineConfig
from stoker_runtime.core.block_pool import BlockPool
from stoker_runtime.core.request import Request
from stoker_runtime.core.scheduler import Scheduler
from stoker_runtime.core.step import SampledToken, StepPlan, StepResult
from stoker_runtime.engine.engine import budgets_of
from stoker_runtime.messages import AddRequest, SamplingParams

BLOCK_SIZE = 16


def make_scheduler(num_requests: int, context: int, output: int) -> Scheduler:
    """Return a scheduler with a GPU's budgets and requests that share nothing."""
    config = EngineConfig(model="none", max_num_seqs=num_requests).for_device("cuda")
    budgets = budgets_of(config, max_model_len=context + output + 1)
    num_blocks = num_requests * (-(-(context + output) // BLOCK_SIZE) + 1)
    scheduler = Scheduler(budgets, BlockPool(num_blocks, BLOCK_SIZE, b"k" * 16))
    sampling = SamplingParams(max_tokens=output, temperature=0.0)
    for index in range(num_requests):
        prompt = [(31 * index + 7 * position) % 997 for position in range(context)]
        command = AddRequest(request_id=f"r{index}", prompt_token_ids=prompt, sampling=sampling)
        scheduler.add(Request(command, seed=index))
    return scheduler


def step_seconds(scheduler: Scheduler, num_requests: int, max_in_flight: int) -> list[float]:
    """Run to the end; return the time of each step in which all requests decode."""
    times: list[float] = []
    in_flight: deque[StepPlan] = deque()
    while scheduler.has_work:
        spent_s = 0.0
        while len(in_flight) < max_in_flight:
            start_s = time.perf_counter()
            plan = None if scheduler.must_wait else scheduler.schedule()
            spent_s += time.perf_counter() - start_s
            if plan is None or not plan.requests:
                break
            in_flight.append(plan)
        done = in_flight.popleft()
        result = StepResult([SampledToken(item.request_id, 5) for item in done.requests if item.samples])
        start_s = time.perf_counter()
        scheduler.update(result)
        spent_s += time.perf_counter() - start_s
        if done.num_tokens == len(done.requests) == num_requests:
            times.append(spent_s)
    return times


@click.command(context_settings={"show_default": True})
@click.option("--requests", "num_requests", default=256, help="That decode at once.")
@click.option("--context", default=1024, help="Prompt tokens of each.")
@click.option("--output", default=512, help="Output tokens of each.")
def main(num_requests: int, context: int, output: int) -> None:
    """Time the scheduler alone."""
    for max_in_flight in (1, 2):
        times = step_seconds(make_scheduler(num_requests, context, output), num_requests, max_in_flight)
        median_ms = 1e3 * statistics.median(times)
        click.echo(f"{num_requests} decodes, {max_in_flight} in flight: {median_ms:.2f} ms per step")


if __name__ == "__main__":
    main()
