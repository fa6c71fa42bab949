"""GGUF blocks read by the C++ library: PyTorch's reading in every bit, or PyTorch's instead."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_builders import make_model, write_gguf

from stoker_runtime.gguf_file import read_gguf
from stoker_runtime.model.checkpoint.blocks import KEPT_TYPES
from stoker_runtime.model.checkpoint.dequantize import FORMATS
from stoker_runtime.model.checkpoint.gguf_metadata import architecture_from_gguf
from stoker_runtime.model.checkpoint.weights import GgufSource
from stoker_runtime.model.native import blocks
from stoker_runtime.model.native.blocks import read_blocks
from stoker_runtime.model.native.library import dequantizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("type_id", sorted(KEPT_TYPES))
@given(seed=st.integers(0, 2**32 - 1), num_blocks=st.integers(1, 5), start=st.integers(0, 3))
def test_blocks_that_the_library_reads_equal_pytorchs_bit_for_bit(
    type_id: int, dtype: torch.dtype, seed: int, num_blocks: int, start: int
) -> None:
    if dequantizer(dtype) is None:
        pytest.skip("no library that runs on this machine")
    form = FORMATS[type_id]
    raw = np.random.default_rng(seed).integers(0, 256, start + num_blocks * form.num_bytes, dtype=np.uint8)
    stored = torch.from_numpy(raw)[start:]  # wherever a file has put them
    values = torch.zeros(num_blocks, form.num_values, dtype=dtype)
    assert read_blocks(type_id, stored, values)
    expected = form.decode(stored.clone().view(num_blocks, form.num_bytes)).to(dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    is_nan = expected.isnan()  # of which there are many, and which one it is means nothing
    assert torch.equal(values.isnan(), is_nan)
    assert torch.equal(values.view(bits)[~is_nan], expected.view(bits)[~is_nan])


def test_blocks_that_the_library_does_not_read_are_left_to_pytorch() -> None:
    stored = torch.zeros(34, dtype=torch.uint8)
    assert not read_blocks(8, stored, torch.empty(32, dtype=torch.float16))
    assert not read_blocks(8, stored, torch.empty(32, 2).T[0])
    assert not read_blocks(1, stored, torch.empty(17))


def test_a_library_that_reads_blocks_wrongly_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_gguf(
        tmp_path / "m.gguf", make_model("qwen3"), "qwen3", {"ffn_down": gguf.GGMLQuantizationType.Q8_0}
    )
    parsed = read_gguf(tmp_path / "m.gguf")
    name, shape = "model.layers.0.mlp.down_proj.weight", parsed.tensors["blk.0.ffn_down.weight"].shape
    right, wrong = torch.empty(shape), torch.empty(shape)
    with GgufSource(parsed, architecture_from_gguf(parsed), read_blocks) as source:
        source.copy_into(name, right)
        monkeypatch.setattr(blocks, "dequantizer", lambda _: lambda *_: 1)
        blocks._reader.cache_clear()
        source.copy_into(name, wrong)
    blocks._reader.cache_clear()
    assert "reads GGUF blocks wrongly" in caplog.text
    assert torch.equal(right, wrong)
