"""The scheduler alone, on simulated steps: `python bench/scheduler.py`. No model, no clock, no noise.

A step's time follows a cost model fitted to SmolLM2 in bfloat16 on two cores; what it says of other machines
is which policy is better, not by how many milliseconds. Closed loops show throughput, an arriving long prompt
the gaps between tokens, and a trace of conversations with common system prompts how many of the achievable
prefix hits are found. Prints a table.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import click

from loadgen.results import distribution
from stoker_runtime.core.block_pool import BlockPool
from stoker_runtime.core.budgets import Budgets
from stoker_runtime.core.request import Request
from stoker_runtime.core.scheduler import Scheduler
from stoker_runtime.core.step import SampledToken, StepPlan, StepResult
from stoker_runtime.messages import AddRequest, SamplingParams

NO_LIMIT = 10**9
BLOCK_SIZE = 16
CPU = Budgets(
    max_num_seqs=64,
    max_num_batched_tokens=256,
    max_model_len=8192,
    prefill_beside_decodes=32,
    prefill_per_request=6,
    few_requests=8,
    context_price=1536,
    stretch=165,
    long_prompt_tokens=256,
)
POLICIES = {
    "as served": CPU,
    "no limit beside decodes": replace(CPU, prefill_beside_decodes=NO_LIMIT, context_price=0, stretch=0),
    "32 beside decodes": replace(CPU, stretch=0),
    "32 beside decodes, flat": replace(CPU, prefill_per_request=0, context_price=0, stretch=0),
    "4 per request": replace(CPU, prefill_per_request=4),
    "one lane": replace(CPU, long_prompt_tokens=NO_LIMIT),
    "neither": replace(
        CPU, prefill_beside_decodes=NO_LIMIT, context_price=0, stretch=0, long_prompt_tokens=NO_LIMIT
    ),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A request's tokens."""

    prompt: tuple[int, ...]
    output_tokens: int


@dataclass
class Result:
    """What a simulated run gave, in milliseconds."""

    num_tokens: int = 0
    now: float = 0.0
    ttft: dict[str, list[float]] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    prefix_hits: int = 0  # prompt tokens

    def line(self) -> str:
        """One row of the table."""
        cells = [f"{self.num_tokens / self.now * 1e3:6.0f} tok/s"]
        for name, times in (*sorted(self.ttft.items()), ("gap", self.gaps)):
            spread = distribution(times)
            cells.append(f"{name} {spread.p50:.0f}/{spread.p99:.0f} ms" if spread else f"{name} -")
        return "  ".join(cells)


def step_ms(plan: StepPlan) -> float:
    """Return how long a step takes: a start, each decode, each prompt token and what it attends to."""
    time_ms = 7.8
    for item in plan.requests:
        length = len(item.token_ids)
        if length == 1:
            time_ms += 0.5
        else:
            time_ms += length * (0.25 + 0.00013 * (item.num_computed_tokens + length / 2))
    return time_ms


def simulate(shapes: Sequence[Shape], concurrency: int, budgets: Budgets, *, is_caching: bool) -> Result:
    """Run a closed loop to its end."""
    scheduler = Scheduler(budgets, BlockPool(1400, BLOCK_SIZE, b"k" * 16 if is_caching else None))
    result = Result()
    started: dict[str, float] = {}
    last: dict[str, float] = {}
    rest = iter(enumerate(shapes))

    def start_next() -> None:
        index, shape = next(rest, (0, None))
        if shape is not None:
            sampling = SamplingParams(max_tokens=shape.output_tokens, ignore_eos=True)
            command = AddRequest(
                request_id=str(index), prompt_token_ids=list(shape.prompt), sampling=sampling
            )
            started[str(index)] = result.now
            scheduler.add(Request(command, seed=0))

    for _ in range(concurrency):
        start_next()
    while scheduler.has_work:
        plan = scheduler.schedule()
        time_ms = step_ms(plan)
        result.now += time_ms
        sampled = [SampledToken(item.request_id, 5) for item in plan.requests if item.samples]
        for output in scheduler.update(StepResult(sampled), time_ms / 1e3):
            name = output.request_id
            result.num_tokens += len(output.token_ids)
            if name in last:
                result.gaps.append(result.now - last[name])
            else:
                kind = "long" if len(shapes[int(name)].prompt) > CPU.long_prompt_tokens else "short"
                result.ttft.setdefault(kind, []).append(result.now - started[name])
            last[name] = result.now
            if output.finish_reason is not None:
                start_next()
    result.prefix_hits = scheduler.stats().prefix_hits
    return result


def unlike(lengths: Sequence[tuple[int, int]]) -> list[Shape]:
    """Return requests of these prompt and output lengths that share nothing."""
    tokens = count(1)
    return [Shape((next(tokens),) * prompt, output) for prompt, output in lengths]


def conversations(seed: int) -> list[Shape]:
    """Return turns of chats: few system prompts, each turn holds the one before and its answer."""
    rng = random.Random(seed)
    systems = [tuple(rng.choices(range(1000), k=rng.randint(100, 700))) for _ in range(4)]
    turns: list[list[Shape]] = []
    for _ in range(24):
        prompt = rng.choice(systems)
        turns.append([])
        for _ in range(4):
            prompt += tuple(rng.choices(range(1000), k=rng.randint(10, 120)))
            turns[-1].append(Shape(prompt, 32))
            prompt += (5,) * 32
    return [turn for number in range(4) for turn in (chat[number] for chat in turns)]


def achievable_hits(shapes: Sequence[Shape]) -> int:
    """Return the prompt tokens found if each request knew the blocks of all before it, and kept them all."""
    known: set[tuple[int, ...]] = set()
    hits = 0
    for shape in shapes:
        tokens = shape.prompt + (5,) * shape.output_tokens
        ends = range(BLOCK_SIZE, len(shape.prompt), BLOCK_SIZE)
        for end in ends:
            if tokens[:end] not in known:
                break
            hits += BLOCK_SIZE
        known.update(tokens[:end] for end in range(BLOCK_SIZE, len(tokens), BLOCK_SIZE))
    return hits


def beside_streams() -> list[Shape]:
    """Return eight streams, and a long prompt that takes the place of the first that ends."""
    return unlike([(16, 512)] * 7 + [(16, 40), (4096, 1)])


def found_share(budgets: Budgets, concurrency: int, seed: int) -> float:
    """Return which share of the achievable prefix hits a trace of conversations finds."""
    shapes = conversations(seed)
    return simulate(shapes, concurrency, budgets, is_caching=True).prefix_hits / achievable_hits(shapes)


@click.command()
def main() -> None:
    """Print what each policy makes of each load."""
    rng = random.Random(3)
    mixed = [(rng.randint(16, 512), rng.randint(16, 128)) for _ in range(256)]
    loads = {
        "16 at once, 64 in, 64 out": (unlike([(64, 64)] * 128), 16),
        "32 at once, 16..512 in, 16..128 out": (unlike(mixed), 32),
        "a 4k prompt beside 7 streams": (beside_streams(), 8),
        "4 x 1.5k and 24 x 48 prompts at once": (unlike([(1536, 8)] * 4 + [(48, 24)] * 24), 28),
    }
    for load, (shapes, concurrency) in loads.items():
        click.echo(f"{load}; times are p50/p99")
        for name, budgets in POLICIES.items():
            click.echo(f"  {name:24} {simulate(shapes, concurrency, budgets, is_caching=False).line()}")
    click.echo("conversations: share of the achievable prefix hits, with 1, 8 and 24 at once")
    for name, budgets in POLICIES.items():
        shares = "  ".join(f"{found_share(budgets, concurrency, 1):.3f}" for concurrency in (1, 8, 24))
        click.echo(f"  {name:24} {shares}")


if __name__ == "__main__":
    main()
