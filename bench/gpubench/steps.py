"""Times of single steps and of an engine, in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from stoker_runtime.core.step import AsyncRunner, Runner, ScheduledRequest, StepPlan
from stoker_runtime.engine.engine import Engine
from stoker_runtime.messages import AddRequest, SamplingParams

Timer = Callable[[], None]
_NUM_KERNELS = 12


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """An engine that computes many requests at once.

    Args:
        output_token_per_s: of the steps that only decode.
        scheduler_s: median per such step, spent outside the runner.
    """

    output_token_per_s: float
    scheduler_s: float


def synchronize(device: str) -> None:
    """Wait until a device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def decode_plan(contexts: Sequence[int], block_size: int) -> StepPlan:
    """A step of one token for each request, not the same ones, each over blocks of its own."""
    requests, first_block = [], 0
    for index, context in enumerate(contexts):
        end_block = first_block + -(-context // block_size)
        requests.append(
            _scheduled(index, [(7 + 13 * index) % 251], context - 1, range(first_block, end_block))
        )
        first_block = end_block
    return StepPlan(requests)


def prefill_plan(num_tokens: int, block_size: int) -> StepPlan:
    """A step that computes one prompt."""
    tokens = [(13 * index) % 251 for index in range(num_tokens)]
    return StepPlan([_scheduled(0, tokens, 0, range(-(-num_tokens // block_size)))])


def mixed_plan(contexts: Sequence[int], num_tokens: int, block_size: int) -> StepPlan:
    """A step that computes one prompt beside decodes, see decode_plan."""
    decodes = decode_plan(contexts, block_size).requests
    first_block = decodes[-1].block_ids[-1] + 1 if decodes else 0
    blocks = range(first_block, first_block - (-num_tokens // block_size))
    tokens = [(13 * index) % 251 for index in range(num_tokens)]
    return StepPlan([*decodes, _scheduled(len(decodes), tokens, 0, blocks)])


def _scheduled(index: int, token_ids: list[int], computed: int, blocks: range) -> ScheduledRequest:
    return ScheduledRequest(
        request_id=str(index),
        token_ids=token_ids,
        num_computed_tokens=computed,
        block_ids=list(blocks),
        samples=True,
        sampling=SamplingParams(max_tokens=1, temperature=0.0),
        seed=0,
        prompt_token_ids=[],
        output_token_ids=[],
    )


def step_seconds(runner: Runner, plan: StepPlan, repeats: int) -> float:
    """Median seconds of a step, its preparation on the host and the sampler included."""
    device = runner.ready().device
    times = []
    for repeat in range(repeats + 2):
        synchronize(device)
        start_s = time.perf_counter()
        runner.step(plan)
        synchronize(device)
        if repeat >= 2:  # the first ones compile
            times.append(time.perf_counter() - start_s)
    return statistics.median(times)


def served_seconds(runner: Runner, plan: StepPlan, repeats: int) -> float:
    """Seconds of a step as it is served: where the engine may, each is launched before the last one ends."""
    device = runner.ready().device
    run_in_a_row(runner, plan, 2)
    synchronize(device)
    start_s = time.perf_counter()
    run_in_a_row(runner, plan, repeats)
    synchronize(device)
    return (time.perf_counter() - start_s) / repeats


def run_in_a_row(runner: Runner, plan: StepPlan, count: int) -> None:
    """Run a step so many times, two of them in flight where the runner takes them."""
    if not (runner.ready().async_scheduling and isinstance(runner, AsyncRunner)):
        for _ in range(count):
            runner.step(plan)
        return
    runner.submit(plan)
    for _ in range(count - 1):
        runner.submit(plan)
        runner.collect()
    runner.collect()


def profiled(runner: Runner, plan: StepPlan, repeats: int) -> dict[str, Any]:
    """Take how much of the time of steps in a row the GPU computes, and what it computes longest."""
    run_in_a_row(runner, plan, 2)
    synchronize("cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        start_s = time.perf_counter()
        run_in_a_row(runner, plan, repeats)
        synchronize("cuda")
        wall_s = time.perf_counter() - start_s
    seconds = device_seconds(profile.key_averages())
    longest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:_NUM_KERNELS]
    return {
        "busy": sum(seconds.values()) / wall_s,
        "kernels": {name: seconds[name] / repeats for name in longest},  # seconds per step
    }


def device_seconds(events: Iterable[Any]) -> dict[str, float]:
    """Seconds of what ran on the device, by name; calls of the host that launched it count it once more."""
    seconds: dict[str, float] = {}
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            seconds[event.key] = seconds.get(event.key, 0.0) + event.self_device_time_total / 1e6
    return seconds


def first_token_seconds(engine: Engine, num_tokens: int, repeats: int) -> float:
    """Median seconds from a request's arrival at an idle engine to its first token."""
    times = []
    for repeat in range(repeats + 1):
        start_s = time.perf_counter()
        engine.add(_request(f"first-{repeat}", num_tokens, 1, seed=repeat))
        while not any(output.token_ids for output in engine.step().outputs):
            pass
        if repeat:
            times.append(time.perf_counter() - start_s)
    return statistics.median(times)


def engine_times(engine: Engine, runner: Runner, batch: int, prompt: int, output: int) -> EngineTimes:
    """Run a batch of requests to their end and time the steps in which all of them decode."""
    inside = [0.0]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start_s = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                inside[0] += time.perf_counter() - start_s

        return run

    # A step is either one call or, with asynchronous scheduling, two.
    calls = ("submit", "collect") if runner.ready().async_scheduling else ("step",)
    for name in calls:
        setattr(runner, name, timed(getattr(runner, name)))
    try:
        for index in range(batch):
            engine.add(_request(f"batch-{index}", prompt, output, seed=1000 + index))
        steps: list[tuple[float, float]] = []  # seconds in all, and inside the runner
        while engine.has_work:
            start_s, inside[0] = time.perf_counter(), 0.0
            outputs = engine.step().outputs
            if len(outputs) == batch:
                steps.append((time.perf_counter() - start_s, inside[0]))
    finally:
        for name in calls:
            delattr(runner, name)
    if not steps:
        raise RuntimeError(
            f"{batch} requests never decoded together: the KV cache or the budget is too small"
        )
    return EngineTimes(
        output_token_per_s=batch * len(steps) / sum(total for total, _ in steps),
        scheduler_s=statistics.median(total - runner_s for total, runner_s in steps),
    )


def _request(request_id: str, num_tokens: int, max_tokens: int, seed: int) -> AddRequest:
    return AddRequest(
        request_id=request_id,
        prompt_token_ids=[(seed * 31 + 13 * index) % 251 for index in range(num_tokens)],
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0),
    )
