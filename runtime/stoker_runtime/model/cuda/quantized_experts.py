"""The products of experts.py for weights that stay quantized: each program decodes what it multiplies."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from stoker_runtime.model.cuda.activation import activate
from stoker_runtime.model.cuda.quantized_linear import tile_inputs, weight_tile
from stoker_runtime.model.cuda.routing import Groups
from stoker_runtime.model.linear import Product
from stoker_runtime.model.mlp import Experts
from stoker_runtime.model.quantized.linear import QuantizedLinear
from stoker_runtime.model.quantized.stack import QuantizedStack, stack
from stoker_runtime.model.quantized.weight import QuantizedWeight

_COLUMNS = 64


@triton.jit
def _quantized_experts_kernel(
    rows,
    codes,
    zeros,
    scales,
    order,
    pairs,
    tile_experts,
    tile_starts,
    tile_ends,
    out,
    num_inputs,
    num_outputs,
    group_size,
    code_stride,
    scale_stride,
    NUM_PER_TOKEN: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_GELU: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """One tile of one expert's product; see experts._experts_kernel."""
    expert = tl.load(tile_experts + tl.program_id(0)).to(tl.int64)
    if expert >= 0:
        place = tl.load(tile_starts + tl.program_id(0)) + tl.arange(0, ROWS)
        is_row = place < tl.load(tile_ends + tl.program_id(0))
        pair = tl.load(pairs + place, mask=is_row, other=0)
        source = (pair // NUM_PER_TOKEN if IS_GATED else place).to(tl.int64)
        target = (place if IS_GATED else pair).to(tl.int64)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        is_column = column < num_outputs
        height = 2 * num_outputs if IS_GATED else num_outputs
        codes += expert * code_stride
        zeros += expert * scale_stride
        scales += expert * scale_stride
        first = tl.zeros([ROWS, COLUMNS], tl.float32)
        second = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, num_inputs, INPUTS):
            inputs = start + tl.arange(0, INPUTS)
            is_input = inputs < num_inputs
            where = inputs
            if HAS_ORDER:
                where = tl.load(order + expert * num_inputs + inputs, mask=is_input, other=0)
            row_where = source[:, None] * num_inputs + where[None, :]
            part = tl.load(rows + row_where, mask=is_row[:, None] & is_input[None, :], other=0.0)
            matrix, scale = weight_tile(
                codes, zeros, scales, start, inputs, column, is_input, is_column, height, num_inputs,
                group_size, BITS, part.dtype,
            )  # fmt: skip
            first += tl.dot(part, matrix, input_precision="ieee") * scale[None, :]
            if IS_GATED:
                other, other_scale = weight_tile(
                    codes, zeros, scales, start, inputs, column + num_outputs, is_input, is_column, height,
                    num_inputs, group_size, BITS, part.dtype,
                )  # fmt: skip
                second += tl.dot(part, other, input_precision="ieee") * other_scale[None, :]
        dtype = out.dtype.element_ty
        if IS_GATED:  # the product's two halves are rounded, as they would be in memory
            first = activate(first.to(dtype), second.to(dtype), IS_GELU)
        where_out = out + target[:, None] * num_outputs + column[None, :]
        tl.store(where_out, first.to(dtype), mask=is_row[:, None] & is_column[None, :])


def multiply_quantized_groups(
    rows: Tensor,
    weight: QuantizedStack,
    groups: Groups,
    num_per_token: int,
    activation: Literal["silu", "gelu_tanh"] | None,
    out: Tensor,
) -> None:
    """Multiply each pair's row with its expert's weight; see experts.multiply_groups."""
    num_outputs, num_inputs = out.shape[1], rows.shape[1]
    size = tile_inputs(weight.group_size, num_inputs)
    assert size is not None, "mixtures with other groups are not stacked"
    _quantized_experts_kernel[(groups.tile_experts.shape[0], triton.cdiv(num_outputs, _COLUMNS))](
        rows,
        weight.codes,
        weight.codes if weight.zeros is None else weight.zeros,
        weight.scales,
        weight.codes if weight.order is None else weight.order,
        groups.pairs,
        groups.tile_experts,
        groups.tile_starts,
        groups.tile_ends,
        out,
        num_inputs,
        num_outputs,
        weight.group_size,
        weight.codes.stride(0),
        weight.scales.stride(0),
        NUM_PER_TOKEN=num_per_token,
        IS_GATED=activation is not None,
        IS_GELU=activation == "gelu_tanh",
        HAS_ORDER=weight.order is not None,
        BITS=weight.bits,
        ROWS=groups.rows_per_tile,
        COLUMNS=_COLUMNS,
        INPUTS=min(size, 32) if rows.dtype == torch.float32 else size,
        num_warps=4 if groups.rows_per_tile <= 32 else 8,
        num_stages=2 if groups.rows_per_tile == 128 else 3,  # as many as fit 99 KiB of shared memory
    )


def stacked_mixture(mixture: Experts) -> Experts | None:
    """Return a mixture with its quantized weights stacked, and with experts that are views of the stacks.

    Returns:
        None where weights are not quantized, differ in more than numbers, or have groups without a tile.
    """
    gate_ups = _weights([expert.gate_up for expert in mixture.experts])
    downs = _weights([expert.down for expert in mixture.experts])
    if gate_ups is None or downs is None:
        return None
    gate_up, down = stack(gate_ups), stack(downs)
    if gate_up is None or down is None:
        return None
    views = zip(mixture.experts, gate_up.like(gate_ups), down.like(downs), strict=True)
    experts = (
        replace(expert, gate_up=QuantizedLinear((first,)), down=QuantizedLinear((second,)))
        for expert, first, second in views
    )
    return replace(mixture, experts=tuple(experts), stacks=(gate_up, down))


def _weights(products: list[Product]) -> list[QuantizedWeight] | None:
    """Return the weights of products that each have a single one that a tile can read, else None."""
    weights = []
    for product in products:
        if not isinstance(product, QuantizedLinear) or len(product.weights) > 1 or product.bias is not None:
            return None
        weight = product.weights[0]
        if tile_inputs(weight.group_size, weight.shape[1]) is None:
            return None
        weights.append(weight)
    return weights
