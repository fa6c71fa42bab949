"""What a number format or quantization costs in quality: `python bench/perplexity.py [--schemes]`.

Perplexity of SmolLM2 (unless --model says else) on English text, token by token in windows, for several ways
to load the same weights; and how far each way's next-token distribution is from float32's, as the mean
Kullback-Leibler divergence in nats. Table to standard output.

Without --schemes the ways are those that this CPU's kernels compute. With it they are the ways to store
weights and KV caches that a GPU computes: what they do to the numbers does not depend on the device, so
PyTorch's operators show it in float32, a window in one step. Integers are rounded to the nearest, which is
not GPTQ's and AWQ's optimisation but what their layouts cost without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from torch import Tensor

from loadgen.models import smollm2
from loadgen.schemes import SCHEMES, plain_decoder
from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.gguf_file import find_gguf
from stoker_runtime.messages import SamplingParams
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.loader import load_runner
from stoker_runtime.model.runner import ModelRunner
from stoker_runtime.tokenizer_files import load_assets

REPOSITORY = Path(__file__).resolve().parents[1]
BLOCK_SIZE = 16
WAYS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, int8 weights": {"dtype": "bfloat16", "quantization": "int8"},
    "bfloat16, gguf weights": {"dtype": "bfloat16", "quantization": "gguf"},
}


@dataclass
class Score:
    """Sums over all tokens that were predicted."""

    num_tokens: int = 0
    loss: float = 0.0
    divergence: float = 0.0

    def add(self, logprobs: Tensor, reference: Tensor, targets: Tensor) -> None:
        """Count predictions: logprobs of all tokens and float32's, [N, V], and the tokens that came, [N]."""
        self.num_tokens += len(targets)
        self.loss -= logprobs.gather(1, targets.unsqueeze(1)).sum().item()
        self.divergence += (reference.exp() * (reference - logprobs)).sum().item()


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="Default SmolLM2.")
@click.option("--text", "files", type=click.Path(exists=True, path_type=Path), multiple=True)
@click.option("--windows", type=click.IntRange(1), default=32)
@click.option("--window-tokens", type=click.IntRange(2), default=512)
@click.option("--num-threads", type=click.IntRange(1), default=2)
@click.option("--schemes", "compares_schemes", is_flag=True, help="Ways to store weights and KV caches.")
def main(
    model: Path | None,
    files: tuple[Path, ...],
    windows: int,
    window_tokens: int,
    num_threads: int,
    compares_schemes: bool,
) -> None:
    """Measure perplexity; without --text on this repository's licence and documents."""
    path = model or smollm2()
    token_ids = _token_ids(path, files or (REPOSITORY / "LICENSE", *sorted(REPOSITORY.glob("docs/**/*.md"))))
    windows = min(windows, len(token_ids) // window_tokens)
    if windows < 1:
        raise click.UsageError(f"the text has {len(token_ids)} tokens, fewer than one window")
    rows = [token_ids[i * window_tokens : (i + 1) * window_tokens] for i in range(windows)]
    click.echo(f"{windows * (window_tokens - 1)} tokens of {len(rows)} windows")
    torch.set_num_threads(num_threads)
    scores = _scheme_scores(path, rows) if compares_schemes else _way_scores(path, rows, num_threads)
    reference = _perplexity(scores["float32"])
    for name, score in scores.items():
        perplexity = _perplexity(score)
        click.echo(
            f"{name:40} perplexity {perplexity:.4f} ({perplexity / reference - 1:+.3%}), "
            f"divergence {score.divergence / score.num_tokens:.6f}"
        )


def _way_scores(model: Path, rows: list[list[int]], num_threads: int) -> dict[str, Score]:
    config = EngineConfig(model=str(model), device="cpu", num_threads=num_threads, kv_cache_bytes=2 << 30)
    # A model in safetensors has no blocks to keep.
    ways = {name: way for name, way in WAYS.items() if way.get("quantization") != "gguf" or find_gguf(model)}
    runners = {name: _runner(replace(config, **way)) for name, way in ways.items()}  # type: ignore[arg-type]
    scores = {name: Score() for name in ways}
    for position in range(len(rows[0]) - 1):
        _score(runners, scores, rows, position)
    return scores


def _scheme_scores(model: Path, rows: list[list[int]]) -> dict[str, Score]:
    """Scores of one scheme after the other; what float32 predicts is kept for all of them."""
    scores: dict[str, Score] = {}
    references: list[Tensor] = []
    size = len(rows[0])
    for name, scheme in SCHEMES.items():
        decoder = plain_decoder(model, scheme, size)
        num_blocks = -(-size // BLOCK_SIZE)
        cache = KVCache(decoder.architecture, num_blocks, BLOCK_SIZE, scheme.kv_dtype, decoder.device)
        score = scores[name] = Score()
        for index, row in enumerate(rows):
            request = _request(row[:-1], 0, range(num_blocks))
            with torch.inference_mode():
                logprobs = decoder(StepPlan([request]), cache).log_softmax(dim=-1)
            if len(references) == index:
                references.append(logprobs)
            score.add(logprobs, references[index], torch.tensor(row[1:]))
    return scores


def _token_ids(model: Path, files: tuple[Path, ...]) -> list[int]:
    tokenizer = load_assets(model).tokenizer
    text = "\n\n".join(file.read_text() for file in files)
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _runner(config: EngineConfig) -> ModelRunner:
    runner = load_runner(config)
    assert isinstance(runner, ModelRunner)
    return runner


def _score(
    runners: dict[str, ModelRunner], scores: dict[str, Score], rows: list[list[int]], position: int
) -> None:
    """Predict the token behind `position` in every window, in every way."""
    per_row = -(-len(rows[0]) // BLOCK_SIZE)
    requests = [
        _request([row[position]], position, range(i * per_row, (i + 1) * per_row))
        for i, row in enumerate(rows)
    ]
    targets = torch.tensor([row[position + 1] for row in rows])
    reference: Tensor | None = None
    for name, runner in runners.items():
        with torch.inference_mode():
            logprobs = runner.decoder(StepPlan(requests), runner.cache).log_softmax(dim=-1)
        reference = logprobs if reference is None else reference
        scores[name].add(logprobs, reference, targets)


def _request(token_ids: list[int], position: int, blocks: range) -> ScheduledRequest:
    """Ask what follows each of these tokens, the first of which is at `position`."""
    return ScheduledRequest(
        request_id=str(blocks.start),
        token_ids=token_ids,
        num_computed_tokens=position,
        block_ids=list(blocks),
        samples=True,
        sampling=SamplingParams(max_tokens=1),
        seed=0,
        prompt_token_ids=[],
        output_token_ids=[],
        num_draft_tokens=len(token_ids) - 1,
    )


def _perplexity(score: Score) -> float:
    return float(torch.tensor(score.loss / score.num_tokens).exp())


if __name__ == "__main__":
    main()
