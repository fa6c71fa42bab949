"""Mixed load with random aborts for a long time: `python bench/soak.py` (SmolLM2, 30 minutes unless said).

Runs `stoker-runtime serve` on a loopback port and keeps requests of all kinds in flight, some of whose
clients leave in the middle. In the end no KV block may be in use, every request that was not given up must
have been answered, and resident memory must be within 2 % of what it was once everything had been used for a
while. Progress to standard error, JSON to standard output; exit status 1 when something is missed.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import click
import uvloop

from loadgen import client, prompts
from loadgen.client import Target
from loadgen.models import smollm2
from loadgen.process import NAME, Server, memory, serving
from loadgen.results import Outcome

MIB = 1 << 20
MAX_DRIFT = 0.02
IDLE_TIMEOUT_S = 60.0
POLL_S = 0.2
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


@dataclass(frozen=True, slots=True)
class Job:
    """One request, and when its client leaves, if it does."""

    target: Target
    prompt: str
    leaves_after_s: float | None


@dataclass
class Soak:
    """What has happened so far."""

    answered: int = 0
    left: int = 0
    output_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    first_failures: list[str] = field(default_factory=list)
    resident: list[tuple[float, int]] = field(default_factory=list)  # seconds since the start, bytes

    def note(self, outcome: Outcome) -> None:
        """Count an answer."""
        if outcome.failure is None:
            self.answered += 1
            self.output_tokens += outcome.output_tokens
        else:
            self.failures[outcome.failure] += 1
            self.first_failures = [*self.first_failures, outcome.detail][:10]

    def resident_at(self, at_s: float) -> int:
        """Return the resident bytes of the sample nearest to a time."""
        return min(self.resident, key=lambda sample: abs(sample[0] - at_s))[1]


def job(url: str, rng: random.Random) -> Job:
    """Draw a request: short or long, streamed or not, with or without a common start, greedy or sampled."""
    length = rng.choice([8, 32, 64, 64, 128, 300, 1200])
    common = prompts.prompt(rng.choice([64, 400]), 0, rng.randrange(4)) if rng.random() < 0.5 else ""
    extra: dict[str, Any] = {"priority": rng.choice([0, 0, 0, -1, 3])}
    if rng.random() < 0.5:
        extra |= {"temperature": 0.8, "top_p": 0.9, "seed": rng.randrange(2**31)}
    if rng.random() < 0.2:
        extra["cache_salt"] = rng.choice(["one", "two"])
    target = Target(
        url,
        NAME,
        api=rng.choice(["completions", "chat"]),
        stream=rng.random() < 0.7,
        output_tokens=rng.choice([1, 8, 32, 64, 128]),
        timeout_s=300.0,
        extra=extra,
    )
    text = common + prompts.prompt(length, rng.randrange(2**31), 0)
    return Job(target, text, rng.uniform(0.0, 2.0) if rng.random() < 0.3 else None)


async def keep_sending(http: aiohttp.ClientSession, url: str, seed: int, soak: Soak, end_s: float) -> None:
    """Send one request after the other until the end."""
    rng = random.Random(seed)
    while time.perf_counter() < end_s:
        drawn = job(url, rng)
        answer = asyncio.create_task(client.send(http, drawn.target, drawn.prompt, 0, 0.0))
        await asyncio.wait([answer], timeout=drawn.leaves_after_s)
        if answer.done():
            soak.note(answer.result())
        else:
            answer.cancel()
            await asyncio.wait([answer])
            soak.left += 1


async def watch(server: Server, soak: Soak, begun_s: float, every_s: float) -> None:
    """Note the server's resident memory again and again."""
    while True:
        now_s = time.perf_counter() - begun_s
        soak.resident.append((now_s, memory(server.pid).rss_bytes))
        num_failed = sum(soak.failures.values())
        click.echo(
            f"{now_s / 60:5.1f} min: {soak.answered} answered, {soak.left} left, {num_failed} failed, "
            f"{soak.resident[-1][1] / MIB:.1f} MiB",
            err=True,
        )
        await asyncio.sleep(every_s)


async def gauges(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Return what /metrics says of requests and KV."""
    async with http.get(f"{url}/metrics") as response:
        text = await response.text()
    found = {name: re.search(rf"^vllm:{name}\{{.*\}} (\S+)$", text, re.MULTILINE) for name in GAUGES}
    return {name: float(match[1]) for name, match in found.items() if match}


async def idle_gauges(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Return the gauges once nothing runs, or as they are when that takes too long."""
    deadline_s = time.perf_counter() + IDLE_TIMEOUT_S
    while True:
        now = await gauges(http, url)
        if not any(now.values()) or time.perf_counter() > deadline_s:
            return now
        await asyncio.sleep(POLL_S)


async def measure(
    model: Path, minutes: float, settle_minutes: float, concurrency: int, serve_args: Sequence[str]
) -> dict[str, Any]:
    """Run the soak and return the report."""
    soak = Soak()
    async with serving(model, serve_args) as server, client.session(keep_alive=False) as http:
        begun_s = time.perf_counter()
        end_s = begun_s + 60 * minutes
        watching = asyncio.create_task(watch(server, soak, begun_s, max(5.0, min(60.0, 3 * minutes))))
        try:
            async with asyncio.TaskGroup() as group:
                for seed in range(concurrency):
                    group.create_task(keep_sending(http, server.url, seed, soak, end_s))
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        took_s = time.perf_counter() - begun_s
        left_over = await idle_gauges(http, server.url)
        final = memory(server.pid).rss_bytes
    settled = soak.resident_at(60 * settle_minutes)
    drift = final / settled - 1
    is_clean = len(left_over) == len(GAUGES) and not any(left_over.values())
    return {
        "model": model.name,
        "minutes": minutes,
        "answered": soak.answered,
        "left_early": soak.left,
        "failures": dict(soak.failures),
        "first_failures": soak.first_failures,
        "output_token_per_s": soak.output_tokens / took_s,
        "gauges_at_the_end": left_over,
        "resident_mib": [(round(at_s), round(size / MIB, 1)) for at_s, size in soak.resident],
        "resident_settled_mib": settled / MIB,
        "resident_at_the_end_mib": final / MIB,
        "drift": drift,
        "passed": is_clean and abs(drift) <= MAX_DRIFT and not soak.failures and soak.answered > 0,
    }


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option(
    "--model", type=click.Path(exists=True, path_type=Path), help="Directory or GGUF; default SmolLM2."
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=30.0)
@click.option(
    "--settle-minutes",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    help="When the memory is taken that the end is compared with.",
)
@click.option("--concurrency", type=click.IntRange(1), default=24, help="Requests in flight.")
@click.argument("serve_args", nargs=-1, type=click.UNPROCESSED)
def main(
    model: Path | None, minutes: float, settle_minutes: float, concurrency: int, serve_args: tuple[str, ...]
) -> None:
    """Soak the runtime; SERVE_ARGS (after `--`) go to `stoker-runtime serve`."""
    if settle_minutes >= minutes:
        raise click.UsageError("--settle-minutes must be less than --minutes")
    report = uvloop.run(measure(model or smollm2(), minutes, settle_minutes, concurrency, serve_args))
    click.echo(json.dumps(report, indent=2))
    sys.exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()
