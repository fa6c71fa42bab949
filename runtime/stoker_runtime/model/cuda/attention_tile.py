"""What both attention kernels do with a tile of keys: find it in the paged cache, score it, add it up."""

from __future__ import annotations

import triton
import triton.language as tl

from stoker_runtime.model.cuda.e4m3 import from_e4m3

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def cache_rows(blocks, positions, is_inside, BLOCK_SIZE: tl.constexpr):
    """Return the cache slots of positions, as int64 because a cache may have more than 2^31 elements."""
    block_ids = tl.load(blocks + positions // BLOCK_SIZE, mask=is_inside, other=0)
    return block_ids.to(tl.int64) * BLOCK_SIZE + positions % BLOCK_SIZE


@triton.jit
def load_rows(
    base,
    slots,
    slot_stride,
    is_inside,
    DTYPE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
):
    """Load one KV head's rows, [tile, D], zeros where there are none; bytes are e4m3."""
    dims = tl.arange(0, HEAD_PADDED)
    mask = is_inside[:, None] & (dims < HEAD_DIM)[None, :]
    rows = tl.load(base + slots[:, None] * slot_stride + dims[None, :], mask=mask, other=0)
    if base.dtype.element_ty == tl.uint8:
        rows = from_e4m3(rows, DTYPE)
    return rows


@triton.jit
def scaled_scores(query, key, scale, cap, HAS_CAP: tl.constexpr):
    """Scores in units of log2, so that exp2 weighs them: [M, D] x [tile, D] -> [M, tile] float32.

    float32 operands are multiplied as such and not in TF32: tests compare greedy tokens in float32.
    """
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    if HAS_CAP:
        scores = cap * (2 * tl.sigmoid(2 * scores / cap) - 1)  # cap * tanh(scores / cap)
    return scores * LOG2_E


@triton.jit
def accumulate(out, largest, total, scores, value):
    """One step of the online softmax.

    Rows that have seen nothing yet have -inf as their largest score, and must not turn that into NaN.
    """
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    finite = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    shrink = tl.exp2(largest - finite)
    weights = tl.exp2(scores - finite[:, None])
    total = total * shrink + tl.sum(weights, axis=1)
    out = out * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return out, new_largest, total
