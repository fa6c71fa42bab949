"""Products of rows with the experts that they chose: one launch for all experts, whoever chose them.

Rows are sorted by expert and cut into tiles of one expert each, so a program multiplies a tile of rows with a
tile of that expert's weight, and experts that nobody chose are not read. This is the design of MegaBlocks
(Gale, Narayanan, Young and Zaharia 2022, "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts") and
of vLLM's fused_moe; here a tile that its expert does not fill is masked, no padded list of rows is made, and
the first product ends in its activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from stoker_runtime.model.cuda.activation import activate
from stoker_runtime.model.cuda.quantized_experts import multiply_quantized_groups
from stoker_runtime.model.cuda.routing import Choices, Groups, choose_experts, group_by_expert
from stoker_runtime.model.mlp import Experts, Stack
from stoker_runtime.model.quantized.stack import QuantizedStack

_COMBINED_COLUMNS = 1024


@triton.jit
def _experts_kernel(
    rows,
    weight,
    pairs,
    tile_experts,
    tile_starts,
    tile_ends,
    out,
    num_inputs,
    num_outputs,
    NUM_PER_TOKEN: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_GELU: tl.constexpr,
    FILLS_TILES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """One tile of one expert's product.

    IS_GATED: the first product, from rows by token to activated rows by place; its weight has 2 * num_outputs
    rows. Otherwise the second one, from those to answers by pair.
    """
    expert = tl.load(tile_experts + tl.program_id(0)).to(tl.int64)
    if expert >= 0:
        place = tl.load(tile_starts + tl.program_id(0)) + tl.arange(0, ROWS)
        is_row = place < tl.load(tile_ends + tl.program_id(0))
        pair = tl.load(pairs + place, mask=is_row, other=0)
        source = (pair // NUM_PER_TOKEN if IS_GATED else place).to(tl.int64)
        target = (place if IS_GATED else pair).to(tl.int64)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        is_column = column < num_outputs
        inputs = tl.arange(0, INPUTS)
        row_at = rows + source[:, None] * num_inputs + inputs[None, :]
        height = 2 * num_outputs if IS_GATED else num_outputs
        weight_at = weight + (expert * height + column)[:, None] * num_inputs + inputs[None, :]
        first = tl.zeros([ROWS, COLUMNS], tl.float32)
        second = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, num_inputs, INPUTS):
            is_input = (start + inputs)[None, :] < num_inputs
            if FILLS_TILES:  # nothing to hide but rows of other experts
                part = tl.load(row_at + start, mask=is_row[:, None], other=0.0)
                matrix = tl.load(weight_at + start)
            else:
                part = tl.load(row_at + start, mask=is_row[:, None] & is_input, other=0.0)
                matrix = tl.load(weight_at + start, mask=is_column[:, None] & is_input, other=0.0)
            first = tl.dot(part, tl.trans(matrix), first, input_precision="ieee")
            if IS_GATED:
                above = weight_at + start + num_outputs * num_inputs
                if FILLS_TILES:
                    other = tl.load(above)
                else:
                    other = tl.load(above, mask=is_column[:, None] & is_input, other=0.0)
                second = tl.dot(part, tl.trans(other), second, input_precision="ieee")
        dtype = out.dtype.element_ty
        if IS_GATED:  # the product's two halves are rounded, as they would be in memory
            first = activate(first.to(dtype), second.to(dtype), IS_GELU)
        where = out + target[:, None] * num_outputs + column[None, :]
        tl.store(where, first.to(dtype), mask=is_row[:, None] & is_column[None, :])


@triton.jit
def _add_answers_kernel(
    answers, experts, weights, out, size, NUM_PER_TOKEN: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    dtype = out.dtype.element_ty
    total = tl.zeros([COLUMNS], tl.float32)
    for k in tl.static_range(NUM_PER_TOKEN):
        pair = row * NUM_PER_TOKEN + k
        # Rows that chose nobody have no answers in memory, and get zeros.
        mask = (column < size) & (tl.load(experts + pair) >= 0)
        answer = tl.load(answers + pair * size + column, mask=mask, other=0.0).to(tl.float32)
        # Rounded after each operation and added in the order of the experts, as mlp.Experts does.
        weighted = (answer * tl.load(weights + pair).to(tl.float32)).to(dtype)
        total = (total + weighted.to(tl.float32)).to(dtype).to(tl.float32)
    tl.store(out + row * size + column, total.to(dtype), mask=column < size)


@dataclass(frozen=True, slots=True)
class _Tile:
    """How a product is cut: what fits 99 KiB of shared memory and the registers of so many warps."""

    columns: int
    inputs: int
    num_warps: int
    num_stages: int


def _tile(rows: int, is_gated: bool, dtype: torch.dtype) -> _Tile:
    inputs = 32 if dtype == torch.float32 else 64
    if rows <= 32:
        return _Tile(columns=64, inputs=inputs, num_warps=4, num_stages=4 if rows == 16 else 3)
    return _Tile(64 if is_gated else 128, inputs, num_warps=4 if rows == 64 else 8, num_stages=3)


def multiply_groups(
    rows: Tensor,
    weight: Tensor,
    groups: Groups,
    num_per_token: int,
    activation: Literal["silu", "gelu_tanh"] | None,
    out: Tensor,
) -> None:
    """Multiply each pair's row with its expert's weight.

    Args:
        rows: by token where there is an activation, else by place.
        weight: of all experts; where there is an activation, the gate's rows and then as many others.
        groups: which pairs belong to which expert.
        num_per_token: pairs of each token, K.
        activation: of the gate, which is multiplied with the others; None leaves the product as it is.
        out: overwritten, by place where there is an activation, else by pair; pairs in no group are left out.
    Shapes:
        rows [T or T * K, in]; weight [N, 2 * outputs or outputs, in]; out [T * K, outputs]; all contiguous
    """
    num_outputs, num_inputs = out.shape[1], rows.shape[1]
    tile = _tile(groups.rows_per_tile, activation is not None, rows.dtype)
    _experts_kernel[(groups.tile_experts.shape[0], triton.cdiv(num_outputs, tile.columns))](
        rows,
        weight,
        groups.pairs,
        groups.tile_experts,
        groups.tile_starts,
        groups.tile_ends,
        out,
        num_inputs,
        num_outputs,
        NUM_PER_TOKEN=num_per_token,
        IS_GATED=activation is not None,
        IS_GELU=activation == "gelu_tanh",
        FILLS_TILES=num_outputs % tile.columns == 0 and num_inputs % tile.inputs == 0,
        ROWS=groups.rows_per_tile,
        COLUMNS=tile.columns,
        INPUTS=tile.inputs,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def combine(answers: Tensor, choices: Choices) -> Tensor:
    """Add up the answers to each row: [T * K, E] by pair -> [T, E]; zeros for rows that chose nobody."""
    num_rows, num_per_token = choices.experts.shape
    size = answers.shape[1]
    out = answers.new_empty(num_rows, size)
    _add_answers_kernel[(num_rows, triton.cdiv(size, _COMBINED_COLUMNS))](
        answers,
        choices.experts,
        choices.weights,
        out,
        size,
        NUM_PER_TOKEN=num_per_token,
        COLUMNS=_COMBINED_COLUMNS,
        num_warps=4,
    )
    return out


def answer(mixture: Experts, rows: Tensor, scores: Tensor, slots: Tensor) -> Tensor:
    """Return what a mixture adds, without a word to the host; see mlp.Experts.answer.

    Args:
        mixture: with stacked weights, quantized or not.
        rows: of the step.
        scores: what the router says.
        slots: negative for rows that only fill up a recording, and get zeros.
    Shapes:
        rows [T, E], scores [T, N], slots [T] int32 -> [T, E]
    """
    assert mixture.stacks is not None, "mixtures without stacks answer expert by expert"
    gate_up, down = mixture.stacks
    num_per_token, activation = mixture.num_per_token, mixture.experts[0].activation
    choices = choose_experts(scores, slots, num_per_token, mixture.normalizes_weights)
    groups = group_by_expert(choices)
    activated = rows.new_empty(choices.experts.numel(), down.shape[2])
    _multiply(rows, gate_up, groups, num_per_token, activation, activated)
    answers = rows.new_empty(choices.experts.numel(), down.shape[1])
    _multiply(activated, down, groups, num_per_token, None, answers)
    return combine(answers, choices)


def _multiply(
    rows: Tensor,
    weight: Stack,
    groups: Groups,
    num_per_token: int,
    activation: Literal["silu", "gelu_tanh"] | None,
    out: Tensor,
) -> None:
    if isinstance(weight, QuantizedStack):
        multiply_quantized_groups(rows, weight, groups, num_per_token, activation, out)
    else:
        assert isinstance(weight, Tensor), "there are no other stacks"
        multiply_groups(rows, weight, groups, num_per_token, activation, out)
