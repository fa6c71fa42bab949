"""Compare the runtime with other engines on this machine: `python bench/engine.py --rivals`.

Same model (SmolLM2-135M-Instruct unless --model says else, in bfloat16), same prompts, same client; all
engines are up at once and measured in turn, workload by workload. Table to standard error, JSON to standard
output. Without --rivals only the runtime is measured; the first run with it installs them: some 15 minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import uvloop

from loadgen.models import smollm2
from loadgen.process import Program, Server, cpu_s, memory, running
from loadgen.prompts import prompt
from rivals import measure, programs
from rivals.install import cache_folder
from rivals.workloads import WORKLOADS, Job, Workload

MIB = 1 << 20
IDLE_S = 3.0
START_TIMEOUT_S = 300.0
WARM_UP = Workload(tuple(Job(prompt(32, 98, index), 16) for index in range(16)), 8)


@dataclass
class Engine:
    """One engine and what was measured of it."""

    name: str
    server: Server
    start_to_token_s: float
    idle_cores: float = 0.0
    output_tok_s: dict[str, list[float]] = field(default_factory=dict)
    cores: dict[str, list[float]] = field(default_factory=dict)
    front_cores: dict[str, list[float]] = field(default_factory=dict)  # of the first process alone
    failures: dict[str, int] = field(default_factory=dict)
    stalls: list[dict[str, float]] = field(default_factory=list)
    rss_bytes: int = 0
    pss_bytes: int = 0


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="GGUF file; default SmolLM2.")
@click.option("--rivals", "with_rivals", is_flag=True, help="Measure llama.cpp's server and vLLM, too.")
@click.option(
    "--without", multiple=True, type=click.Choice(["llama-server", "vllm"]), help="Leave a rival out."
)
@click.option("--rounds", type=click.IntRange(1), default=3, help="Times that each workload is sent.")
@click.option("--wheels", envvar="STOKER_WHEELS", help="Folder with the CPU build of torch, for vLLM.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the JSON here as well.")
def main(
    model: Path | None,
    with_rivals: bool,
    without: tuple[str, ...],
    rounds: int,
    wheels: str | None,
    json_path: Path | None,
) -> None:
    """Measure engines side by side."""
    file = model or smollm2()
    wanted = [programs.stoker_program(file)]
    if with_rivals:
        folder = cache_folder()
        if "llama-server" not in without:
            wanted.append(programs.llama_cpp_program(folder, file))
        if "vllm" not in without:
            wanted.append(programs.vllm_program(folder, file, wheels))
    try:
        engines = uvloop.run(compare(wanted, rounds))
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(engines), err=True)
    click.echo(front_end(engines[0]), err=True)
    text = json.dumps({"model": file.name, "engines": [report(engine) for engine in engines]}, indent=2)
    if json_path is not None:
        json_path.write_text(text + "\n")
    click.echo(text)
    sys.exit(1 if any(engine.failures for engine in engines) else 0)


async def compare(wanted: Sequence[Program], rounds: int) -> list[Engine]:
    """Start the engines one after another, then measure them in turn."""
    async with contextlib.AsyncExitStack() as stack:
        engines = [await _started(stack, program) for program in wanted]
        for engine in engines:
            await measure.send_all(engine.server, WARM_UP)
        for engine in engines:
            engine.idle_cores = await _idle_cores(engine.server)
        for round_ in range(rounds):
            for name, workload in WORKLOADS.items():
                for engine in engines:
                    await _measure(engine, name, workload(100 * round_ + len(name)))
            for engine in engines:
                engine.stalls.append(await measure.long_prompt_stall(engine.server, 1000 + round_))
        for engine in engines:
            used = memory(engine.server.pid)
            engine.rss_bytes, engine.pss_bytes = used.rss_bytes, used.pss_bytes
    return engines


async def _started(stack: contextlib.AsyncExitStack, program: Program) -> Engine:
    click.echo(f"starting {program.name}", err=True)
    server = await stack.enter_async_context(running(program, START_TIMEOUT_S))
    return Engine(program.name, server, server.start_to_ready_s + await measure.first_token_s(server))


async def _idle_cores(server: Server) -> float:
    before = cpu_s(server.pid)
    await asyncio.sleep(IDLE_S)
    return (cpu_s(server.pid) - before) / IDLE_S


async def _measure(engine: Engine, name: str, workload: Workload) -> None:
    pid = engine.server.pid
    before, front_before = cpu_s(pid), cpu_s(pid, with_descendants=False)
    summary = await measure.send_all(engine.server, workload)
    front = cpu_s(pid, with_descendants=False) - front_before
    engine.cores.setdefault(name, []).append((cpu_s(pid) - before) / summary.duration_s)
    engine.front_cores.setdefault(name, []).append(front / summary.duration_s)
    engine.output_tok_s.setdefault(name, []).append(summary.output_token_per_s)
    click.echo(f"{name}: {engine.name} {summary.output_token_per_s:.1f} out tok/s", err=True)
    for reason, count in summary.failures.items():
        engine.failures[f"{name}: {reason}"] = count
        click.echo(f"{name}: {engine.name}: {count} requests failed: {summary.first_failures[0]}", err=True)


def table(engines: Sequence[Engine]) -> str:
    """Return medians, and the runtime's ratio to the best rival, as text."""
    names = [engine.name for engine in engines]
    rows = [("median of all rounds", *names, "ratio to the best rival")]
    for name in WORKLOADS:
        values = [statistics.median(engine.output_tok_s[name]) for engine in engines]
        rows.append((f"{name}, out tok/s", *(f"{value:.1f}" for value in values), _ratio(values, max)))
    lower: Mapping[str, list[float]] = {
        "p99 gap beside a 4k prompt / median gap": [_median(e, "ratio") for e in engines],
        "time to first token of that 4k prompt, s": [_median(e, "ttft_s") for e in engines],
        "start to first token, s": [e.start_to_token_s for e in engines],
        "resident after load, MiB": [e.rss_bytes / MIB for e in engines],
        "cores when idle": [e.idle_cores for e in engines],
    }
    for name, values in lower.items():
        rows.append((name, *(f"{value:.2f}" for value in values), _ratio(values, min)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def front_end(engine: Engine) -> str:
    """Return what the process that speaks HTTP costs at 300 tokens a second, from the busiest workload."""
    name = max(engine.output_tok_s, key=lambda name: statistics.median(engine.output_tok_s[name]))
    share = [
        cores / tok_s * 300
        for cores, tok_s in zip(engine.front_cores[name], engine.output_tok_s[name], strict=True)
    ]
    return f"HTTP at 300 tokens/s: {statistics.median(share):.1%} of a core (measured in: {name})"


def _median(engine: Engine, key: str) -> float:
    return statistics.median(stall[key] for stall in engine.stalls)


def _ratio(values: Sequence[float], best: Any) -> str:
    rivals = values[1:]
    return f"{values[0] / best(rivals):.2f}" if rivals and best(rivals) > 0 else "-"


def report(engine: Engine) -> dict[str, Any]:
    """Return what was measured, ready for JSON."""
    return {
        "name": engine.name,
        "start_to_ready_s": engine.server.start_to_ready_s,
        "start_to_first_token_s": engine.start_to_token_s,
        "output_tok_s": engine.output_tok_s,
        "cores": engine.cores,
        "front_cores": engine.front_cores,
        "idle_cores": engine.idle_cores,
        "long_prompt": engine.stalls,
        "rss_bytes": engine.rss_bytes,
        "pss_bytes": engine.pss_bytes,
        "failures": engine.failures,
    }


if __name__ == "__main__":
    main()
