"""Send many requests: a closed loop keeps a number in flight, an open loop starts them at Poisson times."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from loadgen import arrivals, client, prompts
from loadgen.results import Outcome, Summary, summarize


@dataclass(frozen=True, slots=True)
class Load:
    """How much to send and for how long; a run ends at the first limit it meets, or when told to stop."""

    num_requests: int | None = None
    duration_s: float | None = None
    concurrency: int = 1  # closed loop
    rate_per_s: float | None = None  # open loop when given
    prompt_tokens: int = 64
    seed: int = 0
    same_prompt: bool = False  # one prompt for all, so that a prefix cache answers most of it
    keep_alive: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """The outcomes of a run in order of their start, and their sum."""

    outcomes: tuple[Outcome, ...]
    summary: Summary


@dataclass
class Progress:
    """What a run has done so far, for whoever wants to look at it before its end."""

    zero_s: float = field(default_factory=time.perf_counter)
    ended: list[Outcome] = field(default_factory=list)

    def now_s(self) -> float:
        """Seconds since the run began, on the clock of `Outcome.started_s`."""
        return time.perf_counter() - self.zero_s


Send = Callable[[int], Awaitable[Outcome]]


async def run(
    target: client.Target,
    load: Load,
    stop: asyncio.Event | None = None,
    progress: Progress | None = None,
) -> Run:
    """Send the load and wait for every answer.

    Args:
        target: where to and what for.
        load: how much.
        stop: once set, no further request starts; those in flight are awaited.
        progress: a new one, kept up to date.
    """
    stop = stop or asyncio.Event()
    progress = progress or Progress()
    async with client.session(keep_alive=load.keep_alive) as http:

        async def send(index: int) -> Outcome:
            text = prompts.prompt(load.prompt_tokens, load.seed, 0 if load.same_prompt else index)
            outcome = await client.send(http, target, text, index, progress.zero_s)
            progress.ended.append(outcome)
            return outcome

        outcomes = await (closed_loop if load.rate_per_s is None else open_loop)(send, load, stop)
    ordered = tuple(sorted(outcomes, key=lambda outcome: outcome.started_s))
    return Run(ordered, summarize(ordered, progress.now_s()))


async def closed_loop(send: Send, load: Load, stop: asyncio.Event) -> list[Outcome]:
    """Keep `load.concurrency` requests in flight; each worker sends its next when its last is answered."""
    outcomes: list[Outcome] = []
    indices = _indices(load)
    deadline_s = _deadline_s(load)

    async def worker() -> None:
        for index in indices:
            if stop.is_set() or time.perf_counter() >= deadline_s:
                return
            outcomes.append(await send(index))

    async with asyncio.TaskGroup() as group:
        for _ in range(load.concurrency):
            group.create_task(worker())
    return outcomes


async def open_loop(send: Send, load: Load, stop: asyncio.Event) -> list[Outcome]:
    """Start requests at Poisson times, however many are still in flight."""
    if load.rate_per_s is None:
        raise ValueError("an open loop needs a rate")
    zero_s = time.perf_counter()
    deadline_s = _deadline_s(load)
    tasks: list[asyncio.Task[Outcome]] = []

    async def one(index: int) -> Outcome:
        return await send(index)

    async with asyncio.TaskGroup() as group:
        for index, at_s in zip(_indices(load), arrivals.poisson(load.rate_per_s, load.seed), strict=False):
            start_s = zero_s + at_s
            stopped = await _stopped_before(stop, min(start_s, deadline_s))
            if stopped or start_s >= deadline_s:
                break
            tasks.append(group.create_task(one(index)))
    return [task.result() for task in tasks]


async def _stopped_before(stop: asyncio.Event, at_s: float) -> bool:
    try:
        await asyncio.wait_for(stop.wait(), max(0.0, at_s - time.perf_counter()))
    except TimeoutError:
        return False
    return True


def _indices(load: Load) -> Iterator[int]:
    return iter(range(load.num_requests)) if load.num_requests is not None else itertools.count()


def _deadline_s(load: Load) -> float:
    return float("inf") if load.duration_s is None else time.perf_counter() + load.duration_s
