"""Measure `stoker-runtime serve` on one machine: `python bench/serve.py` (SmolLM2 unless --model says else).

Start-up, memory, output tokens per second at several concurrencies, and the time to first token of a request
that joins a running batch. Prompts and seeds are fixed, and no two measurements share a prompt, so that none
finds another's in the prefix cache. Table to standard error, JSON to standard output; with `--check` the exit
status says whether the bars are met.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import uvloop

from loadgen import client, prompts
from loadgen.client import Target
from loadgen.models import smollm2
from loadgen.process import NAME, Memory, Server, memory, serving
from loadgen.results import Distribution, Outcome, Summary, distribution, table
from loadgen.run import Load, run

PROMPT_TOKENS = 64
OUTPUT_TOKENS = 64
JOIN_BATCH = 16
JOIN_PROBES = 8
JOIN_OUTPUT_TOKENS = 512
NUM_REQUESTS = {1: 8, 16: 32, 32: 64}
MIB = 1 << 20
# Seeds of the prompts, by measurement; a level's is its concurrency above the last.
WARM_UP_SEED, BATCH_SEED, PROBE_SEED, LEVEL_SEED = 1, 2, 3, 100
# What --check asks for.
MIN_RATIO = 4.0  # output tokens per second at concurrency 16 over those at 1
MAX_START_S = 6.0
MAX_RSS_BYTES = int(1.6 * (1 << 30))


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option(
    "--model", type=click.Path(exists=True, path_type=Path), help="Directory or GGUF; default SmolLM2."
)
@click.option("--concurrency", "levels", type=click.IntRange(1), multiple=True, default=(1, 16, 32))
@click.option(
    "--starts", type=click.IntRange(1), default=3, help="Times to start the server for the start-up time."
)
@click.option("--check", "is_checked", is_flag=True, help="Exit with status 1 unless the bars are met.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the JSON here as well.")
@click.argument("serve_args", nargs=-1, type=click.UNPROCESSED)
def main(
    model: Path | None,
    levels: tuple[int, ...],
    starts: int,
    is_checked: bool,
    json_path: Path | None,
    serve_args: tuple[str, ...],
) -> None:
    """Benchmark the runtime; SERVE_ARGS (after `--`) go to `stoker-runtime serve`."""
    if is_checked and not {1, 16} <= set(levels):
        raise click.UsageError("--check compares --concurrency 16 with 1: measure both")
    try:
        report = uvloop.run(measure(model or smollm2(), levels, starts, serve_args))
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    text = json.dumps(report, indent=2)
    if json_path is not None:
        json_path.write_text(text + "\n")
    click.echo(text)
    missed = missed_bars(report) if is_checked else []
    for bar in missed:
        click.echo(f"MISSED: {bar}", err=True)
    sys.exit(1 if report["num_failed"] or missed else 0)


def missed_bars(report: Mapping[str, Any]) -> list[str]:
    """Return what a report of `measure` falls short of, in words."""
    ratio, start_s = report["ratio_16_to_1"], max(report["start_to_ready_s"])
    rss_bytes = max(report[name]["rss_bytes"] for name in ("memory_idle", "memory_after_load"))
    bars = [
        (ratio >= MIN_RATIO, f"c=16 gives {ratio:.2f} times the tokens of c=1, not {MIN_RATIO:g}"),
        (start_s < MAX_START_S, f"start to ready took {start_s:.2f} s, not below {MAX_START_S:g}"),
        (
            rss_bytes < MAX_RSS_BYTES,
            f"RSS is {rss_bytes / MIB:.0f} MiB, not below {MAX_RSS_BYTES / MIB:.0f}",
        ),
    ]
    return [text for is_met, text in bars if not is_met]


async def measure(
    model: Path, levels: Sequence[int], starts: int, serve_args: Sequence[str]
) -> dict[str, Any]:
    """Run every measurement and return the report."""
    ready_s: list[float] = []
    async with serving(model, serve_args):
        pass  # not counted: it may compile byte code and read files that the kernel has not cached
    for _ in range(starts - 1):
        async with serving(model, serve_args) as server:
            ready_s.append(server.start_to_ready_s)
    async with serving(model, serve_args) as server:
        ready_s.append(server.start_to_ready_s)
        idle = memory(server.pid)
        await _load(server, 8, 16, WARM_UP_SEED)
        runs = {
            f"c={level}": await _load(server, level, NUM_REQUESTS.get(level, 2 * level), LEVEL_SEED + level)
            for level in levels
        }
        busy = memory(server.pid)
        join, probes = await join_ttft(server)
    click.echo(table(runs), err=True)
    _print_facts(ready_s, join, idle, busy)
    failed = sum(run_.requests - run_.succeeded for run_ in runs.values())
    return {
        "model": model.name,
        "start_to_ready_s": ready_s,
        "memory_idle": asdict(idle),
        "memory_after_load": asdict(busy),
        "runs": {name: run_.as_json() for name, run_ in runs.items()},
        "ratio_16_to_1": _ratio(runs),
        "join_batch": JOIN_BATCH,
        "join_ttft_s": asdict(join) if join else None,
        "num_failed": failed + sum(probe.failure is not None for probe in probes),
    }


async def _load(server: Server, concurrency: int, num_requests: int, seed: int) -> Summary:
    load = Load(num_requests=num_requests, concurrency=concurrency, prompt_tokens=PROMPT_TOKENS, seed=seed)
    return (await run(_target(server, OUTPUT_TOKENS), load)).summary


def _target(server: Server, output_tokens: int) -> Target:
    return Target(server.url, NAME, output_tokens=output_tokens)


async def join_ttft(server: Server) -> tuple[Distribution | None, list[Outcome]]:
    """Return the time to first token of requests that join a running batch one by one, and their outcomes.

    The batch decodes long answers and is cut off when the last probe has been answered.
    """
    decoding = asyncio.Semaphore(0)
    zero_s = time.perf_counter()
    probes: list[Outcome] = []
    async with client.session(keep_alive=False) as http:
        batch = [
            asyncio.create_task(_batch_request(http, server, index, zero_s, decoding))
            for index in range(JOIN_BATCH)
        ]
        try:
            async with asyncio.timeout(120):
                for _ in batch:
                    await decoding.acquire()
            for index in range(JOIN_PROBES):
                text = prompts.prompt(PROMPT_TOKENS, PROBE_SEED, index)
                probes.append(await client.send(http, _target(server, 1), text, index, zero_s))
            if any(task.done() for task in batch):
                raise RuntimeError("the batch ended before the last probe: raise JOIN_OUTPUT_TOKENS")
        finally:
            for task in batch:
                task.cancel()
            await asyncio.gather(*batch, return_exceptions=True)
    return distribution(probe.ttft_s for probe in probes if probe.ttft_s is not None), probes


async def _batch_request(
    http: Any, server: Server, index: int, zero_s: float, decoding: asyncio.Semaphore
) -> Outcome:
    text = prompts.prompt(PROMPT_TOKENS, BATCH_SEED, index)
    return await client.send(http, _target(server, JOIN_OUTPUT_TOKENS), text, index, zero_s, decoding.release)


def _ratio(runs: dict[str, Summary]) -> float | None:
    if not {"c=1", "c=16"} <= runs.keys():
        return None
    return runs["c=16"].output_token_per_s / runs["c=1"].output_token_per_s


def _print_facts(ready_s: Sequence[float], join: Distribution | None, idle: Memory, busy: Memory) -> None:
    click.echo(
        f"start to ready: median {statistics.median(ready_s):.2f} s, max {max(ready_s):.2f} s", err=True
    )
    if join is not None:
        click.echo(
            f"TTFT joining {JOIN_BATCH}: p50 {join.p50 * 1e3:.0f} ms, max {join.max * 1e3:.0f} ms", err=True
        )
    for name, when in (("ready", idle), ("after load", busy)):
        click.echo(
            f"memory {name}: RSS {when.rss_bytes / MIB:.0f} MiB, PSS {when.pss_bytes / MIB:.0f} MiB", err=True
        )


if __name__ == "__main__":
    main()
