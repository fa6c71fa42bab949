"""Compares the kernels with PyTorch's operators on the device and the shapes that a model will use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stoker_runtime.model.architecture import Architecture, ExpertSettings
from stoker_runtime.model.attention import attend
from stoker_runtime.model.batch import pack_batch
from stoker_runtime.model.cuda.chunk_attention import (
    ChunkLaunch,
    ChunkWork,
    attend_chunks,
    tokens_per_tile,
)
from stoker_runtime.model.cuda.decode_attention import (
    DecodeLaunch,
    DecodeWork,
    attend_decodes,
    make_partials,
)
from stoker_runtime.model.cuda.experts import answer
from stoker_runtime.model.cuda.quantized_experts import stacked_mixture
from stoker_runtime.model.cuda.quantized_linear import MANY_ROWS, KernelLinear
from stoker_runtime.model.cuda.rotate import Rotation, rotate_and_store
from stoker_runtime.model.cuda.sample_step import sample_plan
from stoker_runtime.model.cuda.shapes import SPLIT_TOKENS, heads_of, scoring_of
from stoker_runtime.model.cuda.step_layout import pack
from stoker_runtime.model.linear import Linear
from stoker_runtime.model.mlp import Experts, Mlp
from stoker_runtime.model.quantized.linear import QuantizedLinear
from stoker_runtime.model.quantized.weight import IntWeight, QuantizedWeight, fp8_rounded

# How far what the kernels compute may be from what PyTorch does, in units of the largest number.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_CHUNK_TOKENS = 40
_NUM_PROGRAMS = 8
_MOST_EXPERTS, _FEW_EXPERTS = 16, 4
_WIDEST_TILE = 256


@torch.inference_mode()
def deviation(
    architecture: Architecture,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    """Attend a decode and a chunk in both ways, as the model's first layer would; ask experts if it has any.

    Returns:
        What differs; None when they agree.
    """
    found = _attention_deviation(architecture, block_size, dtype, kv_dtype, device)
    if found is None and architecture.experts is not None:
        found = _experts_deviation(architecture.experts, architecture, dtype, device)
    return found


def _experts_deviation(
    settings: ExpertSettings, architecture: Architecture, dtype: torch.dtype, device: torch.device
) -> str | None:
    count = max(settings.num_per_token, min(settings.num_experts, _MOST_EXPERTS))
    hidden_size, size = (_less(size) for size in (architecture.hidden_size, settings.intermediate_size))
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])).to(device, dtype)

    gate_up, down = random(count, 2 * size, hidden_size), random(count, hidden_size, size)
    activation = architecture.family.activation
    experts = (
        Mlp(Linear(first), Linear(second), activation) for first, second in zip(gate_up, down, strict=True)
    )
    mixture = Experts(
        random(count, hidden_size),
        tuple(experts),
        settings.num_per_token,
        settings.normalizes_weights,
        (gate_up, down),
    )
    rows = random(_CHUNK_TOKENS, hidden_size) * hidden_size**0.5
    # No two of a row are equal, so that both ways have to choose the same experts.
    scores = torch.rand(_CHUNK_TOKENS, count, generator=generator).argsort(dim=-1).to(device, dtype) / 8
    slots = torch.zeros(_CHUNK_TOKENS, dtype=torch.int32, device=device)
    difference = answer(mixture, rows, scores, slots).float() - mixture.answer(rows, scores).float()
    largest = difference.abs().max().item()
    return None if largest <= TOLERANCE[dtype] else f"experts differ by {largest}"


def _less(size: int) -> int:
    """Return a smaller size that leaves the same over in the last tile."""
    return size if size <= 2 * _WIDEST_TILE else _WIDEST_TILE + size % _WIDEST_TILE


def _attention_deviation(
    architecture: Architecture,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    heads, scoring = heads_of(architecture), scoring_of(architecture, architecture.layers[0])
    # a decode whose context has several splits, and a chunk with tokens before it
    spans = [(2 * SPLIT_TOKENS + 3, 1), (_CHUNK_TOKENS // 2, _CHUNK_TOKENS)]
    plan, num_slots = sample_plan(spans, block_size)
    generator = torch.Generator().manual_seed(0)
    num_tokens = plan.num_tokens
    width = heads.num_heads + 2 * heads.num_kv_heads

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    qkv = random(num_tokens, width, heads.head_dim)
    keys, values = (random(num_slots, heads.num_kv_heads, heads.head_dim).to(kv_dtype) for _ in range(2))
    plain_cache = (keys.clone(), values.clone())
    batch = pack_batch(plan, block_size, (scoring.window,), heads.num_heads, heads.num_kv_heads, device)
    query, key, value = qkv.split([heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], dim=1)  # type: ignore[no-untyped-call]
    expected = attend(
        query.contiguous(), key, value, plain_cache, batch, scoring.window, scoring.scale, scoring.cap
    )

    packed = pack(plan, block_size, tokens_per_tile(heads, dtype))
    views = {
        name: torch.tensor(field.tolist(), dtype=torch.int32, device=device)
        for name, field in packed.fields.items()
    }
    rotated, found = (random(num_tokens, heads.num_heads * heads.head_dim) for _ in range(2))
    nothing = Rotation(None, None, None, norms_projections=False)
    cache = (keys, values)
    rotate_and_store(qkv.flatten(1), nothing, views["positions"], views["slots"], cache, heads, 0.0, rotated)
    decodes = DecodeWork.of(views, packed.num_decodes)
    partials = make_partials(decodes.items.shape[0], heads, device)
    launch = DecodeLaunch(_NUM_PROGRAMS)
    attend_decodes(rotated, cache, block_size, decodes, partials, heads, scoring, found, launch)
    chunks = ChunkWork.of(views)
    attend_chunks(
        rotated, cache, block_size, chunks, heads, scoring, found, ChunkLaunch.default(heads, dtype)
    )
    largest = (found.float() - expected.float()).abs().max().item()
    # written this way round, NaN counts as a difference
    if not (
        largest <= TOLERANCE[dtype] and torch.equal(keys.view(torch.uint8), plain_cache[0].view(torch.uint8))
    ):
        return f"attention differs by {largest}"
    return None


@torch.inference_mode()
def product_deviation(dtype: torch.dtype, device: torch.device, experts: ExpertSettings | None) -> str | None:
    """Multiply few and many rows with weights of 4 and 8 bits and of fp8, and ask experts with such weights.

    Args:
        dtype: of the rows.
        device: that multiplies.
        experts: of the model, if it has any.

    Returns:
        What differs from PyTorch's products; None when nothing does.
    """
    generator = torch.Generator().manual_seed(0)
    for kind in ("fp8", "4 bits", "8 bits"):
        linear = QuantizedLinear((_quantized(kind, 72, 96, generator).to(device),))
        for num_rows in (3, MANY_ROWS):
            rows = torch.randn(num_rows, 96, generator=generator).to(device, dtype)
            found = _relative(KernelLinear(linear)(rows), linear(rows))
            if not found <= TOLERANCE[dtype]:
                return f"products with {kind} differ by {found} of the largest"
        if experts is not None:
            found = _quantized_experts_difference(kind, experts, dtype, device, generator)
            if not found <= TOLERANCE[dtype]:
                return f"experts with {kind} differ by {found} of the largest"
    return None


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


def _quantized(kind: str, num_outputs: int, num_inputs: int, generator: torch.Generator) -> QuantizedWeight:
    """A random weight in groups of 32 inputs, or with a scale for each output."""
    if kind == "fp8":
        return fp8_rounded(torch.randn(num_outputs, num_inputs, generator=generator))
    bits = int(kind.split()[0])
    shape, groups = (num_inputs * bits // 32, num_outputs), (-(-num_inputs // 32), num_outputs)
    words = torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int32)
    zeros = torch.randint(0, 2**bits, groups, generator=generator, dtype=torch.uint8)
    scales = torch.rand(groups, generator=generator) / 2**bits
    return IntWeight(words, zeros, scales, bits, 32, None)


def _quantized_experts_difference(
    kind: str, settings: ExpertSettings, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> float:
    count = max(settings.num_per_token, _FEW_EXPERTS)
    hidden_size, size = 96, 72
    products = [
        QuantizedLinear((_quantized(kind, *shape, generator).to(device),))
        for shape in [(2 * size, hidden_size), (hidden_size, size)] * count
    ]
    pairs = zip(products[::2], products[1::2], strict=True)
    experts = tuple(Mlp(gate_up, down, "silu") for gate_up, down in pairs)
    router = torch.zeros(count, hidden_size, device=device, dtype=dtype)
    mixture = stacked_mixture(Experts(router, experts, settings.num_per_token, True))
    assert mixture is not None, "weights of one kind stack"
    rows = torch.randn(_CHUNK_TOKENS, hidden_size, generator=generator).to(device, dtype) / 4
    scores = torch.rand(_CHUNK_TOKENS, count, generator=generator).argsort(dim=-1).to(device, dtype) / 8
    slots = torch.zeros(_CHUNK_TOKENS, dtype=torch.int32, device=device)
    return _relative(answer(mixture, rows, scores, slots), mixture.answer(rows, scores))
