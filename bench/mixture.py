"""What grouping rows by expert gains on a CPU: `python bench/mixture.py` (a random mixture in bfloat16).

The same steps by the C++ kernels and by PyTorch's operators, which take one expert after the other, each way
in a process of its own: time of a step of decodes and of a prompt. Table to standard error, JSON to standard
output.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from gpubench.random_model import Shape, write_random_model
from gpubench.steps import decode_plan, prefill_plan, step_seconds
from stoker_runtime.config import EngineConfig
from stoker_runtime.model.loader import load_runner
from stoker_runtime.model.native.decoder import NativeDecoder
from stoker_runtime.model.runner import ModelRunner

WAYS = {"kernels": 16, "pytorch": 8}  # block sizes; the kernels compute with no block size of 8
BATCHES = (1, 16)
CONTEXT, PROMPT = 64, 256
KV_CACHE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Times:
    """One way's seconds per step, decodes by their number."""

    decode_s: dict[int, float]
    prompt_s: float


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--hidden", type=click.IntRange(32), default=512, help="Size of the rows.")
@click.option("--layers", type=click.IntRange(1), default=8)
@click.option("--experts", type=click.IntRange(1), default=16, help="In each layer.")
@click.option("--expert-size", type=click.IntRange(32), default=1024, help="Intermediate size of an expert.")
@click.option("--per-token", type=click.IntRange(1), default=2, help="Experts of a token.")
@click.option("--threads", type=click.IntRange(1), default=lambda: len(os.sched_getaffinity(0)))
@click.option("--repeats", type=click.IntRange(1), default=30)
def main(
    hidden: int, layers: int, experts: int, expert_size: int, per_token: int, threads: int, repeats: int
) -> None:
    """Measure both ways, one after the other."""
    if per_token > experts or hidden % 64:
        raise click.UsageError("--per-token is at most --experts, and --hidden a multiple of 64")
    shape = Shape(hidden, expert_size, layers, hidden // 64, hidden // 64, 32000, 1024, experts, per_token)
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder:
        write_random_model(Path(folder), shape, torch.bfloat16, torch.device("cpu"))
        report = {way: in_own_process(folder, way, threads, repeats) for way in WAYS}
    show(report)
    click.echo(json.dumps({way: asdict(times) for way, times in report.items()}, indent=2))


def in_own_process(folder: str, way: str, threads: int, repeats: int) -> Times:
    """Measure one way where the other has left no threads and no memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, folder, way, threads, repeats).result()


def measure(folder: str, way: str, threads: int, repeats: int) -> Times:
    """Load the model and time its steps.

    Raises:
        RuntimeError: the machine has no kernels, so that there is nothing to compare.
    """
    config = EngineConfig(
        model=folder,
        device="cpu",
        dtype="bfloat16",
        block_size=WAYS[way],
        kv_cache_bytes=KV_CACHE_BYTES,
        num_threads=threads,
        seed=0,
    )
    runner = load_runner(config)
    assert isinstance(runner, ModelRunner)
    if isinstance(runner.decoder, NativeDecoder) != (way == "kernels"):
        raise RuntimeError("the kernels cannot compute this model here")
    decode_s = {
        batch: step_seconds(runner, decode_plan([CONTEXT] * batch, config.block_size), repeats)
        for batch in BATCHES
    }
    prompt_s = step_seconds(runner, prefill_plan(PROMPT, config.block_size), max(1, repeats // 4))
    return Times(decode_s, prompt_s)


def show(report: dict[str, Times]) -> None:
    """Print the report as a table."""
    for way, times in report.items():
        decodes = "  ".join(
            f"batch {batch}: {step_s * 1e3:7.2f} ms {batch / step_s:7.1f} tok/s"
            for batch, step_s in times.decode_s.items()
        )
        click.echo(f"{way:8} {decodes}  prompt of {PROMPT}: {times.prompt_s * 1e3:7.1f} ms", err=True)


if __name__ == "__main__":
    main()
