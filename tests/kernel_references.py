"""What the Triton kernels should compute, in PyTorch's operators and double precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.model.cuda.rotate import Rotation
from stoker_runtime.model.cuda.shapes import Heads, Scoring
from stoker_runtime.model.fp8 import FP8
from stoker_runtime.model.linear import Linear
from stoker_runtime.model.mlp import Experts, Mlp
from stoker_runtime.model.quantized.weight import Fp8Weight, IntWeight, QuantizedWeight
from stoker_runtime.model.rope import rotate


@dataclass(frozen=True)
class PagedCache:
    """One layer's random cache, and requests' block tables into it, no block in two of them.

    Shapes:
        keys, values [N * S, Hkv, D]
    """

    keys: Tensor
    values: Tensor
    block_size: int
    tables: list[list[int]]

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values

    def slots(self, request: int, count: int) -> list[int]:
        """Where a request's first tokens are kept."""
        table = self.tables[request]
        return [
            table[position // self.block_size] * self.block_size + position % self.block_size
            for position in range(count)
        ]


def make_paged_cache(
    contexts: Sequence[int],
    block_size: int,
    heads: Heads,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    kv_dtype: torch.dtype | None = None,
) -> PagedCache:
    """Scatter the blocks of requests with these contexts over a cache with some blocks to spare."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-context // block_size) for context in contexts]
    num_blocks = sum(counts) + 3
    order = torch.randperm(num_blocks, generator=generator).tolist()
    tables = []
    for count in counts:
        tables.append(order[:count])
        order = order[count:]
    shape = (num_blocks * block_size, heads.num_kv_heads, heads.head_dim)
    keys, values = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    # Nobody may read what no request stored: it would poison the result.
    is_stored = torch.zeros(shape[0], dtype=torch.bool, device=device)
    places = PagedCache(keys, values, block_size, tables)
    for request, context in enumerate(contexts):
        is_stored[places.slots(request, context)] = True
    keys[~is_stored] = values[~is_stored] = float("nan")
    stored = kv_dtype or dtype
    return PagedCache(keys.to(stored), values.to(stored), block_size, tables)


def attend_span(query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
    """Attend the last tokens of a context: [T, H, D] over 2 x [C, Hkv, D] -> [T, H, D] in float64."""
    group = query.shape[1] // keys.shape[1]
    key, value = (part.double().repeat_interleave(group, dim=1) for part in (keys, values))  # [C, H, D]
    scores = torch.einsum("thd,chd->htc", query.double(), key) * scoring.scale
    if scoring.cap is not None:
        scores = scoring.cap * torch.tanh(scores / scoring.cap)
    seen = torch.arange(keys.shape[0], device=query.device)
    distance = seen[-query.shape[0] :, None] - seen
    is_hidden = distance < 0
    if scoring.window is not None:
        is_hidden |= distance >= scoring.window
    weights = scores.masked_fill(is_hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("htc,chd->thd", weights, value)


def add_and_norm_reference(
    hidden: Tensor,
    delta: Tensor | None,
    delta_weight: Tensor | None,
    weight: Tensor | None,
    eps: float,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """The residual stream afterwards and its norm, both [T, E] float64."""
    summed = hidden.double()
    if delta is not None:
        added = delta.double()
        if delta_weight is not None:
            added = F.rms_norm(added, added.shape[-1:], delta_weight.double(), eps)
        summed = summed + alpha * added
    return summed, summed if weight is None else F.rms_norm(summed, summed.shape[-1:], weight.double(), eps)


def rotate_reference(
    qkv: Tensor, rotation: Rotation, positions: Tensor, heads: Heads, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values: [T, H, D] and twice [T, Hkv, D], float64."""
    rows = qkv.double().view(qkv.shape[0], -1, heads.head_dim)
    query, key, value = rows.split([heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], dim=1)  # type: ignore[no-untyped-call]
    turned = []
    first = 0
    for part in (query, key):
        if rotation.norm_weight is not None:
            weight = rotation.norm_weight[first : first + part.shape[1]].double()
            axes = (1, 2) if rotation.norms_projections else (2,)
            part = part * torch.rsqrt(part.square().mean(dim=axes, keepdim=True) + eps) * weight
        first += part.shape[1]
        if rotation.cosines is not None and rotation.sines is not None:
            cos, sin = (
                table[positions].double().unsqueeze(1) for table in (rotation.cosines, rotation.sines)
            )
            part = rotate(part, cos, sin)
        turned.append(part)
    return turned[0], turned[1], value


def random_weight(
    kind: str,
    num_outputs: int,
    num_inputs: int,
    group_size: int,
    is_shuffled: bool = False,
    seed: int | None = None,
) -> QuantizedWeight:
    """A weight of random codes, its products as large as its inputs; kind is fp8 or an integer's bits."""
    generator = torch.Generator().manual_seed(num_outputs * num_inputs if seed is None else seed)
    groups = (-(-num_inputs // group_size), num_outputs)
    scales = (0.5 + torch.rand(groups, generator=generator)) / num_inputs**0.5
    if kind == "fp8":
        codes = torch.randn(num_outputs, num_inputs, generator=generator).to(FP8)
        return Fp8Weight(codes, scales, group_size, rounds_inputs=True)
    bits = int(kind)
    shape = (num_inputs * bits // 32, num_outputs)
    words = torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int32)
    zeros = torch.randint(0, 2**bits, groups, generator=generator, dtype=torch.uint8)
    order = torch.randperm(num_inputs, generator=generator) if is_shuffled else None
    return IntWeight(words, zeros, (scales * 4 / 2**bits).half(), bits, group_size, order)


def plain_weight(weight: QuantizedWeight) -> Tensor:
    """What a quantized weight stands for, [out, in] float64 on the CPU."""
    found = torch.empty(weight.shape)
    weight.to(torch.device("cpu")).dequantize_into(found)
    return found.double()


def make_mixture(
    counts: tuple[int, int],
    sizes: tuple[int, int],
    activation: Literal["silu", "gelu_tanh"],
    normalizes_weights: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Experts:
    """A random mixture: counts are its experts and those of a row, sizes its rows' and its experts'."""
    count, num_per_token = counts
    hidden_size, size = sizes
    generator = torch.Generator().manual_seed(count)

    def random(*shape: int) -> Tensor:
        weight = torch.randn(*shape, generator=generator) * (1.5 / math.sqrt(shape[-1]))
        return weight.to(device, dtype)

    gate_up, down = random(count, 2 * size, hidden_size), random(count, hidden_size, size)
    experts = (Mlp(Linear(one), Linear(two), activation) for one, two in zip(gate_up, down, strict=True))
    router = random(count, hidden_size)
    return Experts(router, tuple(experts), num_per_token, normalizes_weights, (gate_up, down))


def choose_reference(scores: Tensor, num_per_token: int, normalizes_weights: bool) -> tuple[Tensor, Tensor]:
    """Experts of each row, ascending, of equal ones the first, and their weights in float64: both [T, K]."""
    probabilities = scores.double().softmax(dim=-1)
    ordered = probabilities.float().sort(dim=-1, descending=True, stable=True).indices
    experts = ordered[:, :num_per_token].sort(dim=-1).values
    weights = probabilities.gather(1, experts)
    return experts, weights / weights.sum(dim=-1, keepdim=True) if normalizes_weights else weights


def mixture_reference(mixture: Experts, rows: Tensor, scores: Tensor) -> Tensor:
    """What a mixture adds, in float64: rows [T, E], scores [T, N] -> [T, E]."""
    chosen, weights = choose_reference(scores, mixture.num_per_token, mixture.normalizes_weights)
    out = torch.zeros_like(rows, dtype=torch.float64)
    for row, (experts, of_row) in enumerate(zip(chosen.tolist(), weights, strict=True)):
        for index, weight in zip(experts, of_row, strict=True):
            expert = mixture.experts[index]
            assert isinstance(expert.gate_up, Linear)
            assert isinstance(expert.down, Linear)
            gate, up = F.linear(rows[row].double(), expert.gate_up.weight.double()).chunk(2)
            activated = F.silu(gate) if expert.activation == "silu" else F.gelu(gate, approximate="tanh")
            out[row] += weight * F.linear(activated * up, expert.down.weight.double())
    return out


_PRODUCT_TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def assert_products_close(found: Tensor, expected: Tensor) -> None:
    """Compare products of one dtype with what they should be, relative to the largest."""
    tolerance = _PRODUCT_TOLERANCE[found.dtype]
    largest = expected.abs().max().item() + 1e-3
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance * largest)
