"""Products with a GGUF file's own blocks: those of its values and of rows rounded to 8 bits, exactly."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from model_builders import VOCAB_SIZE, k_blocks, make_model, smollm2_path, write_gguf, write_model
from native_models import tokens
from runtime_builders import make_sampling
from torch import Tensor

from stoker_runtime.config import EngineConfig, Quantization
from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.errors import ConfigError
from stoker_runtime.gguf_file import read_gguf
from stoker_runtime.model import loader
from stoker_runtime.model.block_assembly import BlockAssembly
from stoker_runtime.model.checkpoint.blocks import KEPT_TYPES, BlockLinear, BlockTensor
from stoker_runtime.model.checkpoint.dequantize import FORMATS
from stoker_runtime.model.checkpoint.gguf_metadata import architecture_from_gguf
from stoker_runtime.model.checkpoint.weights import GgufSource
from stoker_runtime.model.mlp import Experts
from stoker_runtime.model.native.decoder import NativeDecoder
from stoker_runtime.model.native.library import GROUP, PANEL, Kernels, find_kernels, fits_panels
from stoker_runtime.model.runner import ModelRunner
from stoker_runtime.tokenizer_files import load_assets

TYPES = gguf.GGMLQuantizationType
KINDS = sorted(KEPT_TYPES)
IDS = [FORMATS[kind].name for kind in KINDS]
ROUNDING = 2**-8  # of a bfloat16 result
BLOCK_SIZE = 16
# Rows rounded to 8 bits are all that differs between two ways to compute logits; relative to their norm.
# It was 0.015 to 0.037 when this was written.
TOLERANCE = 0.06


@functools.cache
def kernels(num_threads: int = 2) -> Kernels:
    found = find_kernels(torch.bfloat16, num_threads)
    if found is None:
        pytest.skip("no kernels for bfloat16 on this machine")
    return found


def random_blocks(kind: int, rows: int, num_blocks: int, seed: int) -> BlockTensor:
    """Blocks of any bytes, but with scales and minimums of weights' size."""
    form = FORMATS[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, num_blocks, form.num_bytes), dtype=np.uint8)
    places = {2: (0,), 3: (0, 2), 8: (0,), 12: (0, 2), 14: (208,)}[kind]
    for place in places:
        scales = rng.uniform(-0.02, 0.02, (rows, num_blocks, 1)).astype("<f2")
        blocks[..., place : place + 2] = scales.view(np.uint8)
    return BlockTensor(kind, torch.from_numpy(blocks.reshape(rows, -1)))


def values_of(tensor: BlockTensor) -> np.ndarray[Any, Any]:
    """The `gguf` package's reading of the blocks, float64."""
    values = gguf.dequantize(tensor.blocks.numpy(), TYPES(tensor.type_id))
    return np.asarray(values, dtype=np.float64).reshape(tensor.shape)


def rounded(rows: Tensor) -> np.ndarray[Any, Any]:
    """Rows as 8-bit integers times a scale for each 32, computed as the kernels do, then float64."""
    grouped = rows.float().numpy().reshape(len(rows), -1, GROUP)
    largest = np.abs(grouped).max(axis=-1, keepdims=True)
    inverse = np.where(largest > 0, np.float32(127) / np.maximum(largest, np.float32(1e-30)), np.float32(0))
    integers = np.rint(grouped * inverse.astype(np.float32)).astype(np.float64)
    scales = (largest / np.float32(127)).astype(np.float64)
    product: np.ndarray[Any, Any] = (integers * scales).reshape(len(rows), -1)
    return product


def assert_product(got: Tensor, rows: Tensor, values: np.ndarray[Any, Any], bias: Tensor | None) -> None:
    """Exact but for float32 additions, whose errors are small against the terms, and one rounding."""
    factors = rounded(rows)
    expected = factors @ values.T
    terms = np.abs(factors) @ np.abs(values).T
    if bias is not None:
        expected = expected + bias.double().numpy()
    difference = np.abs(got.double().numpy() - expected)
    assert bool((difference <= ROUNDING * np.abs(expected) + 4e-6 * terms + 1e-30).all())


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@given(
    num_rows=st.integers(1, 20),
    num_blocks=st.integers(1, 5),
    num_outputs=st.integers(1, 100),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_products_are_those_of_the_files_values(
    kind: int, num_rows: int, num_blocks: int, num_outputs: int, has_bias: bool, seed: int
) -> None:
    tensor = random_blocks(kind, num_outputs, num_blocks, seed)
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randn(num_rows, tensor.shape[1], generator=generator) * 3).bfloat16()
    bias = torch.randn(num_outputs, generator=generator).bfloat16() if has_bias else None
    linear, kept = kernels().packed_blocks(BlockLinear((tensor,), bias))
    assert kept
    assert_product(kernels().product(linear, rows), rows, values_of(tensor), bias)


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=4),
    panels=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    last=st.integers(1, 70),
    num_rows=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_parts_of_several_types_are_one_product(
    kinds: list[int], panels: list[int], last: int, num_rows: int, seed: int
) -> None:
    sizes = [PANEL * count for count in panels[: len(kinds) - 1]] + [last]
    parts = tuple(
        random_blocks(kind, size, 512 // FORMATS[kind].num_values, seed + index)
        for index, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
    )
    joined = BlockLinear(parts).joined()
    assert all(first.type_id != second.type_id for first, second in pairwise(joined.parts))
    assert fits_panels(joined, is_pair=False)
    rows = torch.randn(num_rows, 512, generator=torch.Generator().manual_seed(seed)).bfloat16()
    linear, _kept = kernels().packed_blocks(joined)
    values = np.concatenate([values_of(part) for part in parts])
    assert_product(kernels().product(linear, rows), rows, values, None)


def test_which_weights_fit_panels() -> None:
    whole, broken, other = (random_blocks(kind, rows, 2, 0) for kind, rows in ((2, 64), (2, 48), (3, 64)))
    assert fits_panels(BlockLinear((broken,)), is_pair=True)
    assert fits_panels(BlockLinear((whole, other)), is_pair=False)
    assert not fits_panels(BlockLinear((whole, other)), is_pair=True)
    assert not fits_panels(BlockLinear((broken, other)), is_pair=False)
    assert fits_panels(BlockLinear((other, broken)), is_pair=False)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@given(data=st.data(), num_rows=st.integers(2, 40))
def test_a_row_alone_is_computed_as_among_others_in_every_bit(
    kind: int, data: st.DataObject, num_rows: int
) -> None:
    seed = data.draw(st.integers(0, 2**32))
    tensor = random_blocks(kind, 70, 512 // FORMATS[kind].num_values, seed)
    rows = torch.randn(num_rows, 512, generator=torch.Generator().manual_seed(seed)).bfloat16()
    linear, _kept = kernels().packed_blocks(BlockLinear((tensor,)))
    together = kernels().product(linear, rows)
    row = data.draw(st.integers(0, num_rows - 1))
    assert torch.equal(kernels().product(linear, rows[row : row + 1].contiguous())[0], together[row])
    other_linear, _kept_too = kernels(5).packed_blocks(BlockLinear((tensor,)))
    assert torch.equal(kernels(5).product(other_linear, rows), together)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_rows_that_are_not_finite_stay_so_and_alone(kind: int) -> None:
    tensor = random_blocks(kind, 8, 512 // FORMATS[kind].num_values, 0)
    linear, _kept = kernels().packed_blocks(BlockLinear((tensor,)))
    rows = torch.ones(4, 512).bfloat16()
    rows[1, 3], rows[2, 40] = float("nan"), float("inf")
    finite = kernels().product(linear, rows).isfinite().all(dim=1)
    assert finite.tolist() == [True, False, False, True]


def test_a_block_linear_multiplies_with_its_values() -> None:
    parts = (random_blocks(2, 3, 2, 0), random_blocks(8, 5, 2, 1))
    bias = torch.arange(8.0)
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    values = torch.from_numpy(np.concatenate([values_of(part) for part in parts])).float()
    torch.testing.assert_close(BlockLinear(parts, bias)(rows), rows @ values.T + bias)


def config(path: Path, quantization: Quantization, **settings: Any) -> EngineConfig:
    return EngineConfig(
        **{
            "model": str(path),
            "device": "cpu",
            "dtype": "bfloat16",
            "num_threads": 2,
            "kv_cache_bytes": 1 << 24,
            "quantization": quantization,
            **settings,
        }
    )


def load(path: Path, quantization: Quantization = "gguf") -> ModelRunner:
    kernels()
    runner = loader.load_runner(config(path, quantization))
    assert isinstance(runner, ModelRunner)
    assert isinstance(runner.decoder, NativeDecoder)
    return runner


def request(token_ids: list[int], computed: int, blocks: range) -> ScheduledRequest:
    return ScheduledRequest(
        request_id=f"request-{blocks.start}",
        token_ids=token_ids,
        num_computed_tokens=computed,
        block_ids=list(blocks),
        samples=True,
        sampling=make_sampling(),
        seed=0,
        prompt_token_ids=[],
        output_token_ids=[],
    )


def logits_of(runner: ModelRunner, *steps: list[ScheduledRequest]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([runner.decoder(StepPlan(step), runner.cache) for step in steps])


# The first match of a tensor's name decides. Values and downward projections often have more bits.
MIXED = {"attn_v": TYPES.Q8_0, "ffn_down": TYPES.Q8_0, "token_embd": TYPES.Q8_0, "": TYPES.Q4_0}
# Tiny mixtures: GGUF files have experts in all layers.
MIXTURE = {"decoder_sparse_step": 1, "moe_intermediate_size": 96}
FILES: dict[str, tuple[str, str, Mapping[str, Any], str]] = {
    "llama": ("llama", "llama", {"": TYPES.Q4_0}, "16 matrices stay in their blocks (16 Q4_0), 0 (of"),
    "tied": ("llama", "llama-tied", {"": TYPES.Q4_1}, "15 matrices stay in their blocks (15 Q4_1), 0 (of"),
    "biased": ("qwen2", "qwen2", {"": TYPES.Q8_0}, "15 matrices stay in their blocks (15 Q8_0), 0 (of"),
    "mixed": ("qwen3", "qwen3", MIXED, "16 matrices stay in their blocks (11 Q4_0, 5 Q8_0), 0 (of"),
    "mixed-pair": (
        "qwen3",
        "qwen3",
        {"ffn_up": TYPES.Q8_0, "": TYPES.Q4_1},
        "12 matrices stay in their blocks (12 Q4_1), 4 (of other or mixed types, "
        "or of experts) are rounded to int8, 0 products",
    ),
    "partly-floats": (
        "llama",
        "llama",
        {"attn_k": TYPES.F16, "token_embd": TYPES.F16, "": TYPES.Q4_0},
        "9 matrices stay in their blocks (9 Q4_0), 0 (of other or mixed types, "
        "or of experts) are rounded to int8, 2 products are bf",
    ),
    "fused": ("phi3", "phi3", {"": TYPES.Q8_0}, "10 matrices stay in their blocks (10 Q8_0), 0 (of"),
    "windows": ("gemma3", "gemma3", {"": TYPES.Q4_0}, "15 matrices stay in their blocks (15 Q4_0), 0 (of"),
    "experts": ("llama", "mixtral", {"": TYPES.Q4_0}, "34 matrices stay in their blocks (34 Q4_0), 0 (of"),
    "mixed-experts": (  # the pairs' halves alike, downwards others, in one layer alone
        "qwen3moe",
        "qwen3-moe",
        {"blk.1.ffn_down_exps": TYPES.Q8_0, "": TYPES.Q4_1},
        "46 matrices stay in their blocks (40 Q4_1, 6 Q8_0), 0 (of other or mixed types",
    ),
    "mixed-pairs-of-experts": (
        "qwen3moe",
        "qwen3-moe",
        {"blk.0.ffn_up_exps": TYPES.Q8_0, "": TYPES.Q4_1},
        "34 matrices stay in their blocks (34 Q4_1), 12 (of other or mixed types, "
        "or of experts) are rounded to int8",
    ),
    "plain-experts": (  # beside those of the other layer, which stay in their blocks
        "qwen3moe",
        "qwen3-moe",
        {"blk.1.ffn_gate_exps": TYPES.F16, "blk.1.ffn_down_exps": TYPES.BF16, "": TYPES.Q8_0},
        "28 matrices stay in their blocks (28 Q8_0), 12 (of other or mixed types, "
        "or of experts) are rounded to int8",
    ),
}


def file_model(family: str) -> transformers.PreTrainedModel:
    return make_model(family, **(MIXTURE if family == "qwen3-moe" else {}))


@pytest.mark.parametrize("name", FILES)
def test_a_model_in_blocks_stays_close_to_its_dequantized_self(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    architecture, family, types, said = FILES[name]
    path = tmp_path / "m.gguf"
    write_gguf(path, file_model(family), architecture, types)
    steps = (
        [request(tokens(40, 1), 0, range(1, 4)), request(tokens(5, 2), 0, range(4, 6))],
        [request([9], 40, range(1, 4)), request(tokens(20, 4), 5, range(4, 6))],
    )
    plain = logits_of(load(path, "none"), *steps)
    with caplog.at_level(logging.INFO):
        kept = logits_of(load(path), *steps)
    assert said in caplog.text
    assert 0 < (plain - kept).norm() < TOLERANCE * plain.norm()


@pytest.mark.parametrize("kind", [TYPES.Q4_K, TYPES.Q6_K])
def test_a_model_in_k_blocks_stays_close_to_its_dequantized_self(kind: int, tmp_path: Path) -> None:
    """As llama.cpp's Q4_K_M mixes them: rotated projections and halves of a pair among them."""
    model = make_model("llama", hidden_size=512, intermediate_size=768)
    names = {
        "token_embd": (VOCAB_SIZE, 512),
        "blk.0.attn_q": (512, 512),
        "blk.0.attn_k": (256, 512),
        "blk.0.attn_v": (256, 512),
        "blk.0.ffn_gate": (768, 512),
        "blk.0.ffn_up": (768, 512),
        "blk.1.ffn_down": (512, 768),
    }
    raw = {
        f"{name}.weight": k_blocks(TYPES(kind), *shape, seed=seed)
        for seed, (name, shape) in enumerate(names.items())
    }
    types = {name: TYPES(kind) for name in raw} | {"": TYPES.Q8_0}
    path = tmp_path / "m.gguf"
    write_gguf(path, model, "llama", types, extra=raw)
    step = [request(tokens(40, 1), 0, range(1, 4))]
    plain, kept = logits_of(load(path, "none"), step), logits_of(load(path), step)
    assert 0 < (plain - kept).norm() < TOLERANCE * plain.norm()


def write_k_mixture(path: Path) -> None:
    """As llama.cpp's Q4_K_M mixes them: downwards with more bits, in some of the layers."""
    fields = {"hidden_size": 256, "moe_intermediate_size": 256, "decoder_sparse_step": 1}
    model = make_model("qwen3-moe", **fields)
    kinds = {
        f"blk.{layer}.ffn_{part}_exps.weight": TYPES.Q6_K if (layer, part) == (1, "down") else TYPES.Q4_K
        for layer in range(2)
        for part in ("gate", "up", "down")
    }
    raw = {
        name: k_blocks(kind, 6 * 256, 256, seed).reshape(6, 256, -1)
        for seed, (name, kind) in enumerate(kinds.items())
    }
    write_gguf(path, model, "qwen3moe", {**kinds, "": TYPES.Q8_0}, extra=raw)


def test_a_mixture_in_k_blocks_stays_close_to_its_dequantized_self(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_k_mixture(path)
    steps = [[request(tokens(40, seed), 0, range(1, 4))] for seed in range(4)]
    plain, kept = logits_of(load(path, "none"), *steps), logits_of(load(path), *steps)
    assert 0 < (plain - kept).norm() < TOLERANCE * plain.norm()


def test_experts_blocks_stay_in_the_file_until_they_are_packed(tmp_path: Path) -> None:
    write_k_mixture(tmp_path / "m.gguf")
    parsed = read_gguf(tmp_path / "m.gguf")
    architecture = architecture_from_gguf(parsed)
    with GgufSource(parsed, architecture) as source:
        assembly = BlockAssembly(architecture, source, torch.bfloat16, torch.device("cpu"))
        mixtures = [layer.mlp for layer in assembly.layers()]
        parts: list[BlockTensor] = []
        for mixture in mixtures:
            assert isinstance(mixture, Experts)
            for expert in mixture.experts:
                assert isinstance(expert.gate_up, BlockLinear)
                assert isinstance(expert.down, BlockLinear)
                parts += [*expert.gate_up.parts, *expert.down.parts]
        assert len(parts) == 2 * 6 * 3
        (mapped,) = {part.blocks.untyped_storage().data_ptr() for part in parts}
        starts = sorted(part.blocks.data_ptr() - mapped for part in parts)
    offsets = {tensor.offset for name, tensor in parsed.tensors.items() if "_exps" in name}
    assert offsets <= set(starts)
    assert len(set(starts)) == len(parts)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_embeddings_in_blocks_are_the_files_in_every_bit(kind: int, tmp_path: Path) -> None:
    """With all products in bfloat16 nothing else is left to differ."""
    model = make_model("llama", hidden_size=256)
    table = random_blocks(kind, VOCAB_SIZE, 256 // FORMATS[kind].num_values, seed=1).blocks.numpy()
    path, name = tmp_path / "m.gguf", "token_embd.weight"
    write_gguf(path, model, "llama", {name: TYPES(kind)}, extra={name: table})
    step = [request(tokens(40, 1), 0, range(1, 4))]
    assert torch.equal(logits_of(load(path), step), logits_of(load(path, "none"), step))


@pytest.fixture(scope="module", params=["mixed", "mixed-experts", "mixed-pairs-of-experts", "plain-experts"])
def mixed_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    path = tmp_path_factory.mktemp("mixed") / "m.gguf"
    architecture, family, types, _ = FILES[request.param]
    write_gguf(path, file_model(family), architecture, types)
    return load(path)


@given(cuts=st.sets(st.integers(1, 99), max_size=6), neighbours=st.lists(st.integers(1, 30), max_size=4))
def test_results_do_not_depend_on_chunks_or_neighbours_in_any_bit(
    cuts: set[int], neighbours: list[int], mixed_model: ModelRunner
) -> None:
    prompt, blocks = tokens(100, 1), range(7)
    (alone,) = logits_of(mixed_model, [request(prompt, 0, blocks)])
    others = [
        request(tokens(count, index), 0, range(10 + 2 * index, 12 + 2 * index))
        for index, count in enumerate(neighbours)
    ]
    for start, end in pairwise([0, *sorted(cuts), len(prompt)]):
        logits = logits_of(mixed_model, [*others, request(prompt[start:end], start, blocks)])
    assert torch.equal(logits[-1], alone)


def test_weights_in_blocks_count_with_their_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, make_model("llama"), "llama", {"": TYPES.Q4_0})
    in_blocks, plain = (load(path, name).decoder.num_bytes for name in ("gguf", "none"))
    norms = 5 * 64 * 2  # stay bfloat16
    assert in_blocks - norms == (plain - norms) * 18 // 64  # 18 bytes in place of 32 values of 2


@pytest.mark.parametrize(
    ("types", "settings", "words"),
    [
        pytest.param({"": TYPES.Q4_0}, {"dtype": "float32"}, "--dtype bfloat16", id="beside-float32"),
        pytest.param({"": TYPES.Q4_0}, {"block_size": 8}, "--block-size 16", id="blocks-of-8-tokens"),
        pytest.param({"": TYPES.F16}, {}, "has no weights of Q4_0, Q4_1, Q8_0, Q4_K, Q6_K", id="no-blocks"),
    ],
)
def test_blocks_that_cannot_be_had_are_refused(
    types: Mapping[str, Any], settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", make_model("qwen3"), "qwen3", types)
    with pytest.raises(ConfigError, match=f"--quantization is gguf.*{words}"):
        loader.load_runner(config(tmp_path / "m.gguf", "gguf", **settings))


def test_a_cpu_without_the_instructions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf", make_model("qwen3"), "qwen3", {"": TYPES.Q4_0})
    monkeypatch.setattr(loader, "find_kernels", lambda *_: None)
    with pytest.raises(ConfigError, match="--quantization is gguf, which needs a CPU with AVX512"):
        loader.load_runner(config(tmp_path / "m.gguf", "gguf"))


def test_a_model_that_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    with pytest.raises(ConfigError, match=r"--quantization is gguf, but .* is not a GGUF file"):
        loader.load_runner(config(tmp_path, "gguf"))


def test_smollm2_picks_the_tokens_of_its_dequantized_self() -> None:
    """On English text; the most likely next token was the same at 84 of 89 positions when written."""
    text = " ".join(
        [
            "The city library opens at nine in the morning and closes late in the evening.",
            "Visitors may borrow up to ten books at a time and keep them for four weeks.",
            "When a steam engine runs, water is heated in a boiler until it turns into steam,",
            "and the pressure of that steam pushes a piston back and forth.",
            "To bake bread you need flour, water, salt and yeast; mix them, let the dough rise, and bake it.",
        ]
    )
    token_ids = list(load_assets(smollm2_path()).tokenizer.encode(text).ids)
    assert len(token_ids) > 80
    blocks = range(-(-len(token_ids) // BLOCK_SIZE))
    plain, kept = (
        logits_of(load(smollm2_path(), name), *forced_steps(token_ids, blocks)) for name in ("none", "gguf")
    )
    agreement = (plain.argmax(dim=-1) == kept.argmax(dim=-1)).float().mean()
    assert agreement >= 0.9
    assert 0 < (plain - kept).norm() < TOLERANCE * plain.norm()


def forced_steps(token_ids: list[int], blocks: range) -> list[list[ScheduledRequest]]:
    return [[request([token_id], position, blocks)] for position, token_id in enumerate(token_ids)]
