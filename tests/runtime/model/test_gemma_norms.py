"""Gemma's norms add one to their weights in float32 and round once, also beside half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_builders import VOCAB_SIZE, make_model
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.messages import SamplingParams
from stoker_runtime.model.layer import HeadNorms, rms_norm
from stoker_runtime.model.loader import load_runner
from stoker_runtime.model.native.decoder import NativeDecoder
from stoker_runtime.model.native.library import find_kernels
from stoker_runtime.model.runner import ModelRunner

EPS = 1e-6
# One plus this is 1 in bfloat16, 0.4 % less: about as far from its neighbours as a number can be.
BETWEEN = 0.0038


@pytest.mark.parametrize("theirs", [Gemma2RMSNorm, Gemma3RMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_equal_those_of_transformers_in_every_bit(
    dtype: torch.dtype, theirs: type[Gemma2RMSNorm] | type[Gemma3RMSNorm]
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = (3 * torch.randn(50, 96, generator=generator)).to(dtype)
    weight = torch.randn(96, generator=generator).to(dtype)
    norm = theirs(96, eps=EPS).to(dtype)
    norm.weight.data.copy_(weight)
    widened = weight.float() + 1
    with torch.inference_mode():
        expected = norm(rows)
    found = rms_norm(rows, widened, EPS)
    heads = HeadNorms(widened.expand(5, -1))(rows.view(10, 5, 96), EPS).view(50, 96)
    # in float32 PyTorch's operator may multiply in another order
    tolerance = 1e-6 if dtype == torch.float32 else 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(heads, expected, rtol=tolerance, atol=0)


def logits(runner: ModelRunner, token_ids: list[int]) -> torch.Tensor:
    request = ScheduledRequest(
        request_id="a",
        token_ids=token_ids,
        num_computed_tokens=0,
        block_ids=list(range(-(-len(token_ids) // runner.cache.block_size))),
        samples=True,
        sampling=SamplingParams(max_tokens=1),
        seed=0,
        prompt_token_ids=token_ids,
        output_token_ids=[],
    )
    with torch.inference_mode():
        return runner.decoder(StepPlan([request]), runner.cache)[0]


@pytest.mark.parametrize("block_size", [4, 16], ids=["pytorch", "kernels"])
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_bfloat16_logits_are_no_smaller_than_those_of_transformers(
    family: str, block_size: int, tmp_path: Path
) -> None:
    """Rounded weights make all norms 0.4 % too small: logits too, however the roundings elsewhere fall.

    Measured with them: slopes of 0.9966 to 0.9968, mean differences of 0.0117 to 0.0146. With weights in
    float32: 0.9998 to 1.0001, and 0.0094 to 0.0104.
    """
    theirs = make_model(family)
    for name, parameter in theirs.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.constant_(parameter, BETWEEN)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    config = EngineConfig(
        model=str(tmp_path), device="cpu", dtype="bfloat16", kv_cache_bytes=2**20, block_size=block_size
    )
    runner = load_runner(config)
    assert isinstance(runner, ModelRunner)
    if block_size == 16 and find_kernels(torch.bfloat16, 1) is not None:
        assert isinstance(runner.decoder, NativeDecoder)
    found, expected = [], []
    for seed in range(24):
        token_ids = [(7 * seed + 3 * j * j + j) % VOCAB_SIZE for j in range(40)]
        with torch.inference_mode():
            expected.append(theirs(torch.tensor([token_ids])).logits[0, -1].double())
        found.append(logits(runner, token_ids).double())
    ours, wanted = torch.stack(found), torch.stack(expected)
    slope = (ours * wanted).sum() / (wanted * wanted).sum()
    assert abs(slope - 1) < 1e-3
