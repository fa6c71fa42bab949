"""Products with quantized weights: few rows read the codes themselves, many rows a weight made for them.

A step of few rows is bound by reading weights, so its kernel reads the codes and nothing larger; scales
multiply the sums of a group, not its weights. With many rows a step is bound by arithmetic, which PyTorch's
products do best: the weight is dequantized once for all of them. From how many rows on may be measured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stoker_runtime.model.cuda.e4m3 import from_e4m3
from stoker_runtime.model.quantized.linear import QuantizedLinear
from stoker_runtime.model.quantized.weight import IntWeight, QuantizedWeight

MANY_ROWS = 65  # unless a measurement says otherwise; one tile of the kernel has 64
_TILE_OUTPUTS, _TILE_INPUTS = 64, 64
_FEWEST_INPUTS = 16  # of a product on tensor cores
_FEWEST_PART_INPUTS = 1024  # of a part: what adding it up costs is then little beside reading it
_MOST_PARTS = 8
_INTERPRETED_PROCESSORS = 4
_ADDED = 1024  # numbers of a program that adds parts up


@triton.jit
def _integer_codes(words, inputs, outputs, mask, num_outputs, BITS: tl.constexpr):
    """Codes of a tile, [inputs, outputs] int32."""
    PER_WORD: tl.constexpr = 32 // BITS
    where = (inputs // PER_WORD).to(tl.int64)[:, None] * num_outputs + outputs[None, :]
    word = tl.load(words + where, mask=mask, other=0)
    return (word >> ((inputs % PER_WORD) * BITS)[:, None]) & ((1 << BITS) - 1)


@triton.jit
def _fp8_codes(codes, inputs, outputs, mask, num_inputs, DTYPE: tl.constexpr):
    """Numbers of a tile, [inputs, outputs]."""
    where = outputs.to(tl.int64)[None, :] * num_inputs + inputs[:, None]
    return from_e4m3(tl.load(codes + where, mask=mask, other=0), DTYPE)


@triton.jit
def weight_tile(
    codes,
    zeros,
    scales,
    first,
    inputs,
    outputs,
    is_input,
    is_output,
    num_outputs,
    num_inputs,
    group_size,
    BITS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Return a tile of a weight without its scales, [inputs, outputs], and those of its outputs.

    The inputs begin with the first one and belong to one group.
    """
    mask = is_input[:, None] & is_output[None, :]
    of_group = (first // group_size) * num_outputs + outputs
    if BITS == 0:
        weight = _fp8_codes(codes, inputs, outputs, mask, num_inputs, DTYPE)
    else:
        zero = tl.load(zeros + of_group, mask=is_output, other=0).to(tl.int32)
        code = _integer_codes(codes, inputs, outputs, mask, num_outputs, BITS)
        weight = (code - zero[None, :]).to(DTYPE)
    return weight, tl.load(scales + of_group, mask=is_output, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def _product_kernel(
    rows,
    codes,
    zeros,
    scales,
    out,
    num_rows,
    num_outputs,
    num_inputs,
    group_size,
    span,
    BITS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
    TILE_INPUTS: tl.constexpr,
):
    """One tile of a product, or of the part that comes from a span of inputs."""
    outputs = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    tokens = (tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)).to(tl.int64)
    is_output, is_token = outputs < num_outputs, tokens < num_rows
    summed = tl.zeros([TILE_ROWS, TILE_OUTPUTS], tl.float32)
    start = tl.program_id(2) * span
    for first in range(start, tl.minimum(num_inputs, start + span), TILE_INPUTS):
        inputs = first + tl.arange(0, TILE_INPUTS)
        is_input = inputs < num_inputs
        row_where = tokens[:, None] * num_inputs + inputs[None, :]
        row = tl.load(rows + row_where, mask=is_token[:, None] & is_input[None, :], other=0.0)
        weight, scale = weight_tile(
            codes, zeros, scales, first, inputs, outputs, is_input, is_output, num_outputs, num_inputs,
            group_size, BITS, row.dtype,
        )  # fmt: skip
        summed += tl.dot(row, weight, input_precision="ieee") * scale[None, :]
    out += tl.program_id(2).to(tl.int64) * num_rows * num_outputs
    where = tokens[:, None] * num_outputs + outputs[None, :]
    mask = is_token[:, None] & is_output[None, :]
    tl.store(out + where, summed.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size"])
def _add_parts_kernel(parts, out, size, NUM_PARTS: tl.constexpr, TILE: tl.constexpr):
    where = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = where < size
    total = tl.zeros([TILE], tl.float32)
    for part in tl.static_range(NUM_PARTS):  # always in this order, so that results do not vary
        total += tl.load(parts + part * size + where, mask=mask, other=0.0)
    tl.store(out + where, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _dequantize_kernel(
    codes,
    zeros,
    scales,
    out,
    num_outputs,
    num_inputs,
    group_size,
    BITS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
    TILE_INPUTS: tl.constexpr,
):
    inputs = tl.program_id(0) * TILE_INPUTS + tl.arange(0, TILE_INPUTS)
    outputs = tl.program_id(1) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    mask = (inputs < num_inputs)[:, None] & (outputs < num_outputs)[None, :]
    of_groups = (inputs // group_size)[:, None] * num_outputs + outputs[None, :]
    if BITS == 0:
        value = _fp8_codes(codes, inputs, outputs, mask, num_inputs, tl.float32)
    else:
        zero = tl.load(zeros + of_groups, mask=mask, other=0).to(tl.int32)
        value = (_integer_codes(codes, inputs, outputs, mask, num_outputs, BITS) - zero).to(tl.float32)
    value *= tl.load(scales + of_groups, mask=mask, other=0.0).to(tl.float32)
    where = outputs.to(tl.int64)[None, :] * num_inputs + inputs[:, None]
    tl.store(out + where, value.to(out.dtype.element_ty), mask=mask)


def tile_inputs(group_size: int, num_inputs: int) -> int | None:
    """Inputs of a tile, which may not reach into another group; None where groups are too odd for a tile."""
    if group_size >= num_inputs:
        return _TILE_INPUTS
    power = group_size & -group_size  # the largest power of two that divides it
    return None if power < _FEWEST_INPUTS else min(power, _TILE_INPUTS)


def num_parts(num_outputs: int, num_inputs: int, num_processors: int) -> int:
    """Return into how many parts the inputs of a product with few rows are cut.

    One, unless that leaves more than half of the device's processors idle; else as many as keep them busy and
    leave each part enough to read. It does not depend on the rows, so that those do not depend on each other.
    """
    num_tiles = -(-num_outputs // _TILE_OUTPUTS)
    most = min(_MOST_PARTS, num_inputs // _FEWEST_PART_INPUTS)
    return max(1, min(num_processors // num_tiles, most))


def multiply(rows: Tensor, weight: QuantizedWeight, size: int, parts: int = 1) -> Tensor:
    """Return rows @ weight.T by reading the codes.

    Args:
        rows: a contiguous tensor, in the weight's order of inputs.
        weight: on the same device.
        size: tile_inputs of the weight.
        parts: num_parts of the weight.
    Shapes:
        rows [T, in] -> [T, out]
    """
    codes, zeros, bits = _parts(weight)
    (num_outputs, num_inputs), num_rows = weight.shape, rows.shape[0]
    out = rows.new_empty(num_rows, num_outputs)
    into = out if parts == 1 else rows.new_empty(parts, num_rows, num_outputs, dtype=torch.float32)
    tile_rows = min(64, max(16, triton.next_power_of_2(num_rows)))
    grid = (triton.cdiv(num_outputs, _TILE_OUTPUTS), triton.cdiv(num_rows, tile_rows), parts)
    _product_kernel[grid](
        rows,
        codes,
        zeros,
        weight.scales,
        into,
        num_rows,
        num_outputs,
        num_inputs,
        weight.group_size,
        triton.cdiv(triton.cdiv(num_inputs, parts), size) * size,
        BITS=bits,
        TILE_ROWS=tile_rows,
        TILE_OUTPUTS=_TILE_OUTPUTS,
        TILE_INPUTS=size,
        num_warps=4,
        num_stages=3,
    )
    if parts > 1:
        num_tiles = triton.cdiv(out.numel(), _ADDED)
        _add_parts_kernel[(num_tiles,)](into, out, out.numel(), NUM_PARTS=parts, TILE=_ADDED, num_warps=4)
    return out


def dequantized(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Return the weight that the codes stand for, [out, in], its inputs in the weight's order."""
    codes, zeros, bits = _parts(weight)
    num_outputs, num_inputs = weight.shape
    out = torch.empty(num_outputs, num_inputs, dtype=dtype, device=codes.device)
    grid = (triton.cdiv(num_inputs, _TILE_INPUTS), triton.cdiv(num_outputs, _TILE_OUTPUTS))
    _dequantize_kernel[grid](
        codes,
        zeros,
        weight.scales,
        out,
        num_outputs,
        num_inputs,
        weight.group_size,
        BITS=bits,
        TILE_OUTPUTS=_TILE_OUTPUTS,
        TILE_INPUTS=_TILE_INPUTS,
        num_warps=4,
    )
    return out


def _parts(weight: QuantizedWeight) -> tuple[Tensor, Tensor, int]:
    """Codes, zero points and bits as the kernels take them; fp8 has no zero points, and 0 bits."""
    if isinstance(weight, IntWeight):
        return weight.words, weight.zeros, weight.bits
    codes = weight.codes.view(torch.uint8)
    return codes, codes, 0


class KernelLinear:
    """x @ weight.T + bias over the kernels; takes a QuantizedLinear's place.

    Args:
        linear: its weights are on the device.
    """

    def __init__(self, linear: QuantizedLinear) -> None:
        self._linear = linear
        self._many_rows = [MANY_ROWS] * len(linear.weights)
        processors = _num_processors(linear.weights[0].scales.device)
        self._tiles = [
            (tile_inputs(weight.group_size, weight.shape[1]), num_parts(*weight.shape, processors))
            for weight in linear.weights
        ]

    @property
    def weights(self) -> tuple[QuantizedWeight, ...]:
        """One after the other by output row."""
        return self._linear.weights

    def set_many_rows(self, many_rows: Callable[[QuantizedWeight], int]) -> None:
        """Say from how many rows on each of the weights is dequantized for a product."""
        self._many_rows = [many_rows(weight) for weight in self._linear.weights]

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows @ weight.T + bias: [T, in] -> [T, out]."""
        bias = self._linear.bias
        weights = zip(self._linear.weights, self._tiles, self._many_rows, strict=True)
        parts = [_product(rows, weight, *tiles, many_rows) for weight, tiles, many_rows in weights]
        product = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return product if bias is None else product.add_(bias)


def reads_codes(weight: QuantizedWeight) -> bool:
    """Tell whether the kernel has tiles for a weight; others are always dequantized."""
    return tile_inputs(weight.group_size, weight.shape[1]) is not None


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _product(rows: Tensor, weight: QuantizedWeight, size: int | None, parts: int, many_rows: int) -> Tensor:
    if isinstance(weight, IntWeight) and weight.order is not None:
        rows = rows.index_select(1, weight.order)
    if size is None or rows.shape[0] >= many_rows:
        return F.linear(rows, dequantized(weight, rows.dtype))
    return multiply(rows.contiguous(), weight, size, parts)
