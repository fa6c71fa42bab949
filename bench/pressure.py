"""Ten thousand requests at a server that queues 64: `python bench/pressure.py` (SmolLM2 unless --model).

All but a few must be refused with 429, quickly, and the resident memory must stay where it was. Prints JSON;
exit status 1 when a request was neither answered nor refused, or memory grew by more than 2 %.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import uvloop

from loadgen.client import Target
from loadgen.models import smollm2
from loadgen.process import NAME, memory, serving
from loadgen.results import distribution
from loadgen.run import Load, run

MIB = 1 << 20
MAX_GROWTH = 0.02
MAX_QUEUE = 64
CONCURRENCY = 512
WARM_UP = 2000


async def measure(model: Path, num_requests: int) -> dict[str, Any]:
    """Flood the server twice: once so that it has used what it will use, once to measure."""
    args = ("--max-queue", str(MAX_QUEUE), "--log-level", "warning", "--kv-cache-memory", "64Mi")
    load = Load(num_requests=WARM_UP, concurrency=CONCURRENCY, prompt_tokens=64)
    async with serving(model, args) as server:
        target = Target(server.url, NAME, output_tokens=8)
        await run(target, load)
        before = memory(server.pid).rss_bytes
        done = await run(target, replace(load, num_requests=num_requests, seed=1))
        after = memory(server.pid).rss_bytes
    refused = [outcome for outcome in done.outcomes if outcome.failure == "http_429"]
    spread = distribution(outcome.e2e_s for outcome in refused)
    lost = num_requests - done.summary.succeeded - len(refused)
    return {
        "requests": num_requests,
        "answered": done.summary.succeeded,
        "refused": len(refused),
        "lost": lost,
        "failures": done.summary.failures,
        "duration_s": done.summary.duration_s,
        "refusal_ms_p50": spread.p50 * 1e3 if spread else None,
        "refusal_ms_p99": spread.p99 * 1e3 if spread else None,
        "resident_before_mib": before / MIB,
        "resident_after_mib": after / MIB,
        "passed": lost == 0 and after <= before * (1 + MAX_GROWTH),
    }


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option(
    "--model", type=click.Path(exists=True, path_type=Path), help="Directory or GGUF; default SmolLM2."
)
@click.option("--requests", "num_requests", type=click.IntRange(1), default=10_000)
def main(model: Path | None, num_requests: int) -> None:
    """Flood the runtime."""
    report = uvloop.run(measure(model or smollm2(), num_requests))
    click.echo(json.dumps(report, indent=2))
    sys.exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()
