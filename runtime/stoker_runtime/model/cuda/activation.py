"""activation(gate) * up, for the two halves of one projection."""

from __future__ import annotations

from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024


@triton.jit
def activate(gate, up, IS_GELU: tl.constexpr):
    """Return activation(gate) * up in float32, the activation rounded to their dtype."""
    dtype = gate.dtype
    gate = gate.to(tl.float32)
    if IS_GELU:  # x/2 * (1 + tanh(y)) is x * sigmoid(2 y)
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        activated = gate * tl.sigmoid(2 * inner)
    else:
        activated = gate * tl.sigmoid(gate)
    # Rounded before the product, as PyTorch's two operators do.
    return activated.to(dtype).to(tl.float32) * up.to(tl.float32)


@triton.jit
def _activation_kernel(gate_up, out, size, IS_GELU: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = index < size
    dtype = out.dtype.element_ty
    gate = tl.load(gate_up + row * 2 * size + index, mask=mask, other=0.0)
    up = tl.load(gate_up + row * 2 * size + size + index, mask=mask, other=0.0)
    tl.store(out + row * size + index, activate(gate, up, IS_GELU).to(dtype), mask=mask)


def gate_and_multiply(gate_up: Tensor, activation: Literal["silu", "gelu_tanh"], out: Tensor) -> None:
    """Compute activation(gate) * up: gate_up [T, 2 * I] -> out [T, I], which is overwritten."""
    num_rows, size = out.shape
    _activation_kernel[(num_rows, triton.cdiv(size, _TILE))](
        gate_up, out, size, IS_GELU=activation == "gelu_tanh", TILE=_TILE, num_warps=4
    )
