"""What bench/perplexity.py compares: every way to store weights and KV caches loads, fewer bits cost more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from model_builders import write_gguf, write_model, write_tokenizer
from torch import Tensor

import perplexity
from loadgen.checkpoints import Awq, Fp8, Gptq, Layout, write_quantized
from loadgen.schemes import SCHEMES, InputRounding, Scheme, plain_decoder
from stoker_runtime.core.step import StepPlan
from stoker_runtime.model.decoder import Decoder
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.linear import Linear

TOKENS = [(7 * i + 3) % 150 for i in range(24)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_model(folder, "llama", hidden_size=128, intermediate_size=192)
    return folder


def logits(decoder: Decoder, kv_dtype: torch.dtype) -> Tensor:
    cache = KVCache(decoder.architecture, 2, perplexity.BLOCK_SIZE, kv_dtype, decoder.device)
    with torch.inference_mode():
        found = decoder(StepPlan([perplexity._request(TOKENS, 0, range(2))]), cache)
    assert len(found) == len(TOKENS)
    return found


def test_every_scheme_changes_something_and_fewer_bits_change_more(model: Path) -> None:
    found = {
        name: logits(plain_decoder(model, scheme, 32), scheme.kv_dtype) for name, scheme in SCHEMES.items()
    }
    plain = found.pop("float32")
    differences = {name: ((other - plain).norm() / plain.norm()).item() for name, other in found.items()}
    assert all(0 < difference < 0.6 for difference in differences.values()), differences
    for name, difference in differences.items():
        if not name.startswith("int8"):
            assert difference > differences["int8, GPTQ's layout, groups of 64"]
        if not name.startswith("int4"):
            assert difference < differences["int4, GPTQ's layout, groups of 64"]


@pytest.mark.parametrize("layout", [Gptq(group_size=64), Awq(group_size=64), Fp8("block")])
def test_weights_rounded_on_their_way_are_those_of_a_written_checkpoint(
    layout: Layout, model: Path, tmp_path: Path
) -> None:
    write_quantized(model, tmp_path / "small", layout)
    expected = logits(plain_decoder(model, Scheme(layout), 32), torch.float32)
    from_files = logits(plain_decoder(tmp_path / "small", Scheme(), 32), torch.float32)
    assert torch.equal(from_files, expected)


def test_activations_are_rounded_row_by_row() -> None:
    rows = torch.tensor([[448.0, 1.03, 0.0], [4.48, 0.0103, 0.0]])
    found = InputRounding(Linear(torch.eye(3)))(rows)
    expected = torch.tensor([[448.0, 1.0, 0.0], [4.48, 0.01, 0.0]])
    torch.testing.assert_close(found, expected)


def test_the_table_names_every_scheme(tmp_path: Path) -> None:
    write_model(tmp_path, "llama", vocab_size=256, hidden_size=128, intermediate_size=128)
    write_tokenizer(tmp_path, 256)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 2)
    arguments = ["--schemes", "--model", str(tmp_path), "--text", str(text), "--window-tokens", "20"]
    result = CliRunner().invoke(perplexity.main, [*arguments, "--windows", "2"], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output.startswith("38 tokens of 2 windows")
    assert all(name in result.output for name in SCHEMES)


def test_a_gguf_file_is_rounded_as_well(tmp_path: Path) -> None:
    model = write_model(tmp_path, "llama", hidden_size=128, intermediate_size=128)
    write_gguf(tmp_path / "m.gguf", model, "llama")
    (tmp_path / "config.json").unlink()
    scheme = SCHEMES["int4, AWQ's layout, groups of 64"]
    plain, rounded = (
        logits(plain_decoder(tmp_path / "m.gguf", each, 32), torch.float32) for each in (Scheme(), scheme)
    )
    assert 0 < (plain - rounded).norm() < 0.6 * plain.norm()
