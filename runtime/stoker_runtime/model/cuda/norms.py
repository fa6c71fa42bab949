"""RMSNorm together with the addition to the residual stream that comes before it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms(row, weight, size, eps):
    return row * tl.rsqrt(tl.sum(row * row, axis=0) / size + eps) * weight


@triton.jit
def _add_norm_kernel(
    hidden,
    delta,
    delta_weight,
    weight,
    out,
    size,
    eps,
    alpha,
    HAS_DELTA: tl.constexpr,
    HAS_DELTA_NORM: tl.constexpr,
    HAS_NORM: tl.constexpr,
    SIZE_PADDED: tl.constexpr,
):
    index = tl.arange(0, SIZE_PADDED)
    mask = index < size
    where = tl.program_id(0).to(tl.int64) * size + index
    dtype = hidden.dtype.element_ty
    row = tl.load(hidden + where, mask=mask, other=0.0).to(tl.float32)
    if HAS_DELTA:
        added = tl.load(delta + where, mask=mask, other=0.0).to(tl.float32)
        if HAS_DELTA_NORM:
            scale = tl.load(delta_weight + index, mask=mask, other=0.0).to(tl.float32)
            added = _rms(added, scale, size, eps).to(dtype).to(tl.float32)
        summed = (row + alpha * added).to(dtype)
        tl.store(hidden + where, summed, mask=mask)
        row = summed.to(tl.float32)  # what later layers will read
    if HAS_NORM:
        scale = tl.load(weight + index, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + where, _rms(row, scale, size, eps).to(dtype), mask=mask)


def add_and_norm(
    hidden: Tensor,
    delta: Tensor | None,
    delta_weight: Tensor | None,
    weight: Tensor | None,
    eps: float,
    alpha: float,
    out: Tensor,
) -> Tensor:
    """Add to the residual stream, then normalise it.

    Args:
        hidden: the residual stream; hidden + alpha * delta afterwards.
        delta: what is added, if anything.
        delta_weight: the delta is normalised first, with this weight, if given.
        weight: of the norm of the sum, if it has one.
        eps: of both norms.
        alpha: factor of the delta.
        out: overwritten where there is a weight.
    Shapes:
        hidden, delta, out [T, E]; weights [E]

    Returns:
        The normalised sum; without a weight the sum itself.
    """
    num_rows, size = hidden.shape
    padded = triton.next_power_of_2(size)
    _add_norm_kernel[(num_rows,)](
        hidden,
        hidden if delta is None else delta,
        hidden if delta_weight is None else delta_weight,
        hidden if weight is None else weight,
        out,
        size,
        eps,
        alpha,
        HAS_DELTA=delta is not None,
        HAS_DELTA_NORM=delta_weight is not None,
        HAS_NORM=weight is not None,
        SIZE_PADDED=padded,
        num_warps=min(16, max(1, padded // 512)),
    )
    return hidden if weight is None else out
