"""How long short prompts wait among bursts of long ones: `python bench/fairness.py` (SmolLM2 unless --model).

Starts `stoker-runtime serve` with the two lanes of core/prefill.py and without them, in turns, and sends both
the same open loop at a share of the capacity that a closed loop measured first. Then a long prompt arrives
while streams decode, with few prompt tokens beside decodes and without a limit. Table to standard error, JSON
to standard output.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import uvloop

from loadgen import arrivals, client, prompts
from loadgen.client import Target
from loadgen.models import smollm2
from loadgen.process import NAME, Server, serving
from loadgen.results import Distribution, Outcome, distribution, token_gaps_s

NO_LIMIT = "1000000000"
WITHOUT_LANES = ("--long-prompt-tokens", NO_LIMIT)
WITHOUT_LIMIT = ("--max-prefill-tokens-beside-decodes", NO_LIMIT)


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one size."""

    name: str
    prompt_tokens: int
    output_tokens: int
    per_cycle: int


SHORT = Kind("short", prompt_tokens=48, output_tokens=24, per_cycle=24)
LONG = Kind("long", prompt_tokens=1536, output_tokens=8, per_cycle=4)
STREAMS = 8
STREAM_TOKENS = 512
ARRIVING = Kind("arriving", prompt_tokens=4096, output_tokens=1, per_cycle=1)


@dataclass(frozen=True, slots=True)
class Start:
    """When a request of a kind starts, in seconds since the run began."""

    at_s: float
    kind: Kind


def plan(cycle_s: float, num_cycles: int, seed: int) -> list[Start]:
    """Return an open loop: a burst of long prompts as each cycle begins, short ones at Poisson times."""
    end_s = cycle_s * num_cycles
    starts = [Start(cycle * cycle_s, LONG) for cycle in range(num_cycles) for _ in range(LONG.per_cycle)]
    for at_s in arrivals.poisson(SHORT.per_cycle / cycle_s, seed):
        if at_s >= end_s:
            break
        starts.append(Start(at_s, SHORT))
    return sorted(starts, key=lambda start: start.at_s)


async def replay(server: Server, starts: Sequence[Start], seed: int) -> dict[str, list[Outcome]]:
    """Send every request at its time and return the outcomes by kind."""
    zero_s = time.perf_counter()
    async with client.session(keep_alive=False) as http, asyncio.TaskGroup() as group:
        tasks = []
        for index, start in enumerate(starts):
            await asyncio.sleep(max(0.0, zero_s + start.at_s - time.perf_counter()))
            tasks.append((start.kind, group.create_task(_one(http, server, start.kind, seed, index, zero_s))))
    outcomes: dict[str, list[Outcome]] = {}
    for kind, task in tasks:
        outcomes.setdefault(kind.name, []).append(task.result())
    return outcomes


async def seconds_per_cycle(server: Server, num_cycles: int) -> float:
    """Return how long a cycle's requests take when they are all there from the start."""
    starts = [Start(0.0, kind) for kind in (LONG, SHORT) for _ in range(kind.per_cycle * num_cycles)]
    begun_s = time.perf_counter()
    await replay(server, starts, seed=100)
    return (time.perf_counter() - begun_s) / num_cycles


async def gaps(server: Server) -> tuple[Distribution | None, Outcome]:
    """Return the gaps between the tokens of streams beside which a long prompt arrives, and its outcome."""
    zero_s = time.perf_counter()
    decoding = asyncio.Semaphore(0)
    stream = Kind("stream", prompt_tokens=16, output_tokens=STREAM_TOKENS, per_cycle=1)
    async with client.session(keep_alive=False) as http:
        streams = [
            asyncio.create_task(_one(http, server, stream, 200, index, zero_s, decoding))
            for index in range(STREAMS)
        ]
        for _ in streams:
            await decoding.acquire()
        arrived = await _one(http, server, ARRIVING, 201, 0, zero_s)
        outcomes = await asyncio.gather(*streams)
    return distribution(gap_s for _, gap_s in token_gaps_s(outcomes)), arrived


async def _one(
    http: aiohttp.ClientSession,
    server: Server,
    kind: Kind,
    seed: int,
    index: int,
    zero_s: float,
    begun: asyncio.Semaphore | None = None,
) -> Outcome:
    target = Target(server.url, NAME, output_tokens=kind.output_tokens, timeout_s=300.0)
    text = prompts.prompt(kind.prompt_tokens, seed, index)
    return await client.send(http, target, text, index, zero_s, begun.release if begun else None)


async def measure(model: Path, load: float, num_cycles: int, serve_args: Sequence[str]) -> dict[str, Any]:
    """Run everything and return the report."""
    async with serving(model, serve_args) as server:
        await seconds_per_cycle(server, 1)
        cycle_s = await seconds_per_cycle(server, 2) / load
    report: dict[str, Any] = {"model": model.name, "load": load, "cycle_s": cycle_s, "num_failed": 0}
    starts = plan(cycle_s, num_cycles, seed=1)
    for name, extra in (("without lanes", WITHOUT_LANES), ("with lanes", ())):
        async with serving(model, [*extra, *serve_args]) as server:
            await seconds_per_cycle(server, 1)
            outcomes = await replay(server, starts, seed=2)
        for kind, of_kind in outcomes.items():
            ttft = distribution(outcome.ttft_s for outcome in of_kind if outcome.ttft_s is not None)
            report[f"{name}: {kind}"] = asdict(ttft) if ttft else None
            report["num_failed"] += sum(outcome.failure is not None for outcome in of_kind)
            _say(f"TTFT of {kind} prompts {name}", ttft)
    for name, extra in (("without a limit", WITHOUT_LIMIT), ("with the limit", ())):
        async with serving(model, [*extra, *serve_args]) as server:
            await seconds_per_cycle(server, 1)
            gap, arrived = await gaps(server)
        report[f"gaps {name}"] = {"itl_s": asdict(gap) if gap else None, "ttft_s": arrived.ttft_s}
        report["num_failed"] += arrived.failure is not None
        _say(f"gaps of {STREAMS} streams {name}", gap)
        click.echo(
            f"  the {ARRIVING.prompt_tokens}-token prompt's TTFT: {arrived.ttft_s or 0:.2f} s", err=True
        )
    return report


def _say(name: str, times: Distribution | None) -> None:
    if times is not None:
        click.echo(
            f"{name}: p50 {times.p50 * 1e3:.0f} ms, p99 {times.p99 * 1e3:.0f} ms "
            f"({times.p99 / times.p50:.2f} times), n={times.count}",
            err=True,
        )


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option(
    "--model", type=click.Path(exists=True, path_type=Path), help="Directory or GGUF; default SmolLM2."
)
@click.option(
    "--load", type=click.FloatRange(0, 1, min_open=True), default=0.8, help="Share of the capacity."
)
@click.option("--cycles", type=click.IntRange(1), default=6, help="Bursts of long prompts.")
@click.argument("serve_args", nargs=-1, type=click.UNPROCESSED)
def main(model: Path | None, load: float, cycles: int, serve_args: tuple[str, ...]) -> None:
    """Measure fairness; SERVE_ARGS (after `--`) go to `stoker-runtime serve`."""
    report = uvloop.run(measure(model or smollm2(), load, cycles, serve_args))
    click.echo(json.dumps(report, indent=2))
    sys.exit(1 if report["num_failed"] else 0)


if __name__ == "__main__":
    main()
