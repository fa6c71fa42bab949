"""Measure the engine on a CUDA device: `python bench/gpu.py` (Llama 3.1 8B's shape with random weights).

Which kernels a measurement chose at the start, and its times; per batch size and context: step time and the
memory bandwidth it achieves, GPU busy time; prefill speed and the share of the device's arithmetic it uses;
steps with a prompt beside decodes, recorded as a CUDA graph and kernel by kernel; time to first token; the
scheduler's time per step; and what streaming over HTTP costs against the engine alone. Table to standard
error, JSON to standard output. A figure that fails is named there and leaves the others.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import torch

from gpubench import figures, steps
from gpubench.random_model import LLAMA_8B, write_random_model
from gpubench.report import Report
from loadgen.client import Target
from loadgen.process import NAME, serving
from loadgen.run import Load, run
from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import StepPlan
from stoker_runtime.engine.engine import Engine
from stoker_runtime.model.cuda.choices import Decision, phrase
from stoker_runtime.model.cuda.rooms import buckets, token_buckets
from stoker_runtime.model.loader import load_runner
from stoker_runtime.model.runner import ChoosingDecoder, ModelRunner, RecordingDecoder

DECODES = ((1, 512), (1, 4096), (64, 1024), (256, 1024))  # requests, context of each
PREFILLS = (512, 2048, 8192)
MIXED = ((0, 0, 64), (0, 0, 256), (8, 1024, 64), (32, 1024, 128), (64, 1024, 448))  # decodes, context, prompt
FIRST_TOKEN_PROMPT = 230
STREAMS, STREAM_PROMPT, STREAM_OUTPUT = 256, 128, 256
REPEATS = 20


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="A model's directory.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    help="Write the JSON here as well, figure by figure.",
)
@click.option("--peak-bandwidth", type=float, help="Bytes per second, for a device that is not known.")
@click.option("--peak-operations", type=float, help="bfloat16 operations per second, likewise.")
@click.option("--serve/--no-serve", default=True, help="Measure streaming over HTTP, too.")
def main(
    model: Path | None,
    json_path: Path | None,
    peak_bandwidth: float | None,
    peak_operations: float | None,
    serve: bool,
) -> None:
    """Benchmark the engine on the first CUDA device."""
    if not torch.cuda.is_available():
        raise click.ClickException("there is no usable CUDA device here, and nothing else is worth measuring")
    name = torch.cuda.get_device_name(0)
    peak = figures.peak_of(name)
    if peak_bandwidth and peak_operations:
        peak = figures.Peak(peak_bandwidth, peak_operations)
    if peak is None:
        raise click.UsageError(f"{name} is not known: give --peak-bandwidth and --peak-operations")
    report = Report(json_path, describe(name, peak))
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder:
        if model is None:
            click.echo("writing random weights", err=True)
            model = Path(folder)
            write_random_model(model, LLAMA_8B, torch.bfloat16, torch.device("cuda"))
            torch.cuda.empty_cache()
        measure(EngineConfig(model=str(model), device="cuda", seed=0), peak, report)
        if serve:
            gc.collect()  # or the server finds its memory taken by this process
            torch.cuda.empty_cache()
            report.add("streaming", partial(_streaming, model, report))
    show(report)
    click.echo(report.as_json())
    if report.failed:
        raise click.ClickException(f"not measured: {', '.join(report.failed)}")


def _streaming(model: Path, report: Report) -> dict[str, Any]:
    engine = report.values.get("engine")
    if engine is None:
        raise RuntimeError("there is nothing to compare with: the engine alone was not measured")
    return asyncio.run(streaming(model, engine["output_token_per_s"]))


def describe(name: str, peak: figures.Peak) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "device": name,
        "peak": asdict(peak),
        "clocks": _clocks(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": importlib.metadata.version("triton"),
        "python": platform.python_version(),
    }


def _clocks() -> str | None:
    """Clocks of the processors and the memory right now, as nvidia-smi prints them; None without it."""
    command = [
        "nvidia-smi",
        "--id=0",
        "--query-gpu=clocks.sm,clocks.mem,clocks.max.sm",
        "--format=csv,noheader",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def measure(config: EngineConfig, peak: figures.Peak, report: Report) -> None:
    """Load the model and measure all that needs no server."""
    runner = load_runner(config)
    assert isinstance(runner, ModelRunner)
    ready = runner.ready()
    config = config.for_device(ready.device)
    runner.cache.storage.normal_()  # devices multiply zeros faster than numbers
    report.values |= {"load_s": ready.load_s, "num_blocks": ready.num_blocks}
    report.values["kernel_choices"] = kernel_choices(runner)
    report.values |= {"decode": [], "busy": [], "prefill": [], "mixed": []}
    for batch, context in DECODES:
        plan = steps.decode_plan([context] * batch, ready.block_size)
        if context > ready.max_model_len or plan.requests[-1].block_ids[-1] >= ready.num_blocks:
            click.echo(f"{batch} x {context} tokens do not fit this device", err=True)
            continue
        case = f"{batch} x {context}"
        report.add("decode", partial(decode_figure, runner, plan, [context] * batch, peak), case)
        if ready.device.startswith("cuda"):
            report.add("busy", partial(busy_figure, runner, plan, case), case)
    for count in PREFILLS:
        if count <= min(ready.max_model_len, config.max_num_batched_tokens):
            report.add("prefill", partial(prefill_figure, runner, count, peak), str(count))
            if ready.device.startswith("cuda"):
                plan, case = steps.prefill_plan(count, ready.block_size), f"prompt of {count}"
                report.add("busy", partial(busy_figure, runner, plan, case), case)
    measure_mixed(runner, config, report)
    engine = Engine(runner, config)
    report.add("first_token_s", lambda: steps.first_token_seconds(engine, FIRST_TOKEN_PROMPT, REPEATS))
    report.add(
        "engine",
        lambda: asdict(steps.engine_times(engine, runner, STREAMS, STREAM_PROMPT, STREAM_OUTPUT)),
    )


def decode_figure(
    runner: ModelRunner, plan: StepPlan, contexts: Sequence[int], peak: figures.Peak
) -> dict[str, Any]:
    """Time a step of decodes alone, and what it reads of memory when such steps follow each other."""
    ready, architecture = runner.ready(), runner.decoder.architecture
    itemsize, batch = getattr(torch, ready.dtype).itemsize, len(contexts)
    step_s = steps.step_seconds(runner, plan, REPEATS)
    served_s = steps.served_seconds(runner, plan, REPEATS)
    weights = figures.weight_bytes(architecture, ready.weights_bytes, itemsize, batch)
    kv = figures.kv_bytes_per_token(architecture, itemsize)
    achieved = figures.achieved_bandwidth(weights, kv, contexts, served_s)
    return {
        "batch": batch,
        "context": contexts[0],
        "step_s": step_s,
        "served_step_s": served_s,
        "token_per_s": batch / served_s,
        "bandwidth": achieved,
        "bandwidth_share": achieved / peak.bytes,
    }


def busy_figure(runner: ModelRunner, plan: StepPlan, case: str) -> dict[str, Any]:
    """Take how much of the time of steps in a row the device computes, and the seconds of its kernels."""
    return {"case": case, **steps.profiled(runner, plan, REPEATS)}


def prefill_figure(runner: ModelRunner, count: int, peak: figures.Peak) -> dict[str, Any]:
    """Time one prompt, and the arithmetic that it reaches."""
    ready = runner.ready()
    itemsize = getattr(torch, ready.dtype).itemsize
    step_s = steps.step_seconds(runner, steps.prefill_plan(count, ready.block_size), REPEATS // 4)
    needed = figures.prefill_operations(runner.decoder.architecture, ready.weights_bytes, itemsize, count)
    share = needed / step_s / peak.operations
    return {"tokens": count, "step_s": step_s, "token_per_s": count / step_s, "flops_share": share}


def kernel_choices(runner: ModelRunner) -> list[dict[str, Any]]:
    """Return what was chosen when the model was loaded, and by which times; nothing on a CPU."""
    decoder = runner.decoder
    return (
        [asdict(decision) for decision in decoder.decisions] if isinstance(decoder, ChoosingDecoder) else []
    )


def measure_mixed(runner: ModelRunner, config: EngineConfig, report: Report) -> None:
    """Time steps with a prompt as they are served, and once more without recordings of such steps."""
    ready, decoder = runner.ready(), runner.decoder
    plans: list[tuple[StepPlan, dict[str, Any]]] = []
    for num_decodes, context, prompt in MIXED:
        plan = steps.mixed_plan([context] * num_decodes, prompt, ready.block_size)
        if plan.requests[-1].block_ids[-1] < ready.num_blocks and plan.num_tokens <= ready.max_model_len:
            plans.append((plan, {"decodes": num_decodes, "context": context, "prompt": prompt}))

    def timed(plan: StepPlan, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"step_s": steps.step_seconds(runner, plan, REPEATS)}

    for plan, row in plans:
        report.add("mixed", partial(timed, plan, row), "{prompt} beside {decodes}".format(**row))
    if isinstance(decoder, RecordingDecoder):
        report.add("unrecorded", partial(_unrecorded, runner, decoder, config, [plan for plan, _ in plans]))


def _unrecorded(
    runner: ModelRunner, decoder: RecordingDecoder, config: EngineConfig, plans: Sequence[StepPlan]
) -> list[float]:
    """Seconds of steps with a prompt that are launched kernel by kernel."""
    sizes = buckets(config.max_num_seqs)
    decoder.record(runner.cache, sizes, [])
    try:
        return [steps.step_seconds(runner, plan, REPEATS) for plan in plans]
    finally:
        decoder.record(runner.cache, sizes, token_buckets(config.max_recorded_tokens))


async def streaming(model: Path, engine_token_per_s: float) -> dict[str, Any]:
    """Serve the model, stream to as many clients as the engine was measured with, and compare."""
    arguments = ("--device", "cuda", "--max-queue", str(2 * STREAMS))
    async with serving(model, arguments, timeout_s=300) as server:
        target = Target(server.url, NAME, output_tokens=STREAM_OUTPUT)
        # A word is some five tokens of the random model's vocabulary of bytes.
        load = Load(num_requests=2 * STREAMS, concurrency=STREAMS, prompt_tokens=STREAM_PROMPT // 5)
        summary = (await run(target, load)).summary
    return {
        "start_to_ready_s": server.start_to_ready_s,
        "tax": 1 - summary.output_token_per_s / engine_token_per_s,
        "summary": summary.as_json(),
    }


def show(report: Report) -> None:
    """Print the report as a table."""
    values = report.values
    lines = [f"{values['device']}, torch {values['torch']}, triton {values['triton']}"]
    lines += [phrase(msgspec.convert(row, Decision)) for row in values.get("kernel_choices", [])]
    for row in values.get("decode", []):
        lines.append(
            f"decode {row['batch']:>3} x {row['context']:>5}: {row['step_s'] * 1e3:7.2f} ms alone, "
            f"{row['served_step_s'] * 1e3:7.2f} ms in a row {row['token_per_s']:8.0f} tok/s  "
            f"{row['bandwidth_share']:6.1%} of bandwidth"
        )
    for row in values.get("busy", []):
        lines.append(f"GPU busy with {row['case']}: {row['busy']:.1%}; ms per step:")
        lines += [f"  {seconds * 1e3:8.3f} {name[:90]}" for name, seconds in row["kernels"].items()]
    lines += [
        f"prefill {row['tokens']:>11}: {row['step_s'] * 1e3:7.2f} ms {row['token_per_s']:8.0f} tok/s  "
        f"{row['flops_share']:6.1%} of arithmetic"
        for row in values.get("prefill", [])
    ]
    lines += [
        f"prompt of {row['prompt']:>4} beside {row['decodes']:>2} x {row['context']:>4}: "
        f"{row['step_s'] * 1e3:7.2f} ms"
        for row in values.get("mixed", [])
    ]
    if "unrecorded" in values:
        lines.append(
            f"the same, kernel by kernel: {', '.join(f'{s * 1e3:.2f}' for s in values['unrecorded'])} ms"
        )
    if "first_token_s" in values:
        lines.append(f"first token after {FIRST_TOKEN_PROMPT} tokens: {values['first_token_s'] * 1e3:.2f} ms")
    if "engine" in values:
        lines.append(
            f"engine at {STREAMS}: {values['engine']['output_token_per_s']:.0f} tok/s, "
            f"scheduler {values['engine']['scheduler_s'] * 1e3:.2f} ms per step"
        )
    if "streaming" in values:
        lines.append(f"streaming at {STREAMS}: {values['streaming']['tax']:.1%} slower than the engine alone")
    lines += [f"{title} failed: {error}" for title, error in report.failed.items()]
    click.echo("\n".join(lines), err=True)


if __name__ == "__main__":
    main()
