"""Attention of requests that compute one token, cut along the context so that few requests fill a device.

A context is cut into splits of a size that depends on nothing but its own length, so a request's results
are the same to the last bit whatever runs beside it. A fixed number of programs walks through all splits of
all requests (the work list comes from the host), hence one launch of one shape serves any mix, as a CUDA
graph needs. A second kernel adds up each request's splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stoker_runtime.model.cuda.attention_tile import accumulate, cache_rows, load_rows, scaled_scores
from stoker_runtime.model.cuda.shapes import MAX_SPLITS, SPLIT_TOKENS, Heads, Scoring
from stoker_runtime.model.cuda.stored import as_stored

_MAX_SPLITS = tl.constexpr(MAX_SPLITS)
_SPLIT_TOKENS = tl.constexpr(SPLIT_TOKENS)


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """Which tokens the decodes of a step attend to, on the device.

    Args:
        contexts: tokens each request attends over, its own included; 0 for a padding row.
        first_items: where each request's splits begin in `items`, and behind the last one their number.
        items: request * MAX_SPLITS + split, one per split.
        first_blocks: where each request's block table begins in `blocks`.
        blocks: block tables.
        num_rows: requests and padding rows.
    Shapes:
        contexts, first_blocks [B], first_items [B + 1], all int32
    """

    contexts: Tensor
    first_items: Tensor
    items: Tensor
    first_blocks: Tensor
    blocks: Tensor
    num_rows: int

    @classmethod
    def of(cls, fields: Mapping[str, Tensor], num_rows: int) -> DecodeWork:
        """Take it from step_layout.pack's fields."""
        return cls(
            fields["contexts"],
            fields["first_items"],
            fields["items"],
            fields["decode_first_blocks"],
            fields["blocks"],
            num_rows,
        )


@dataclass(frozen=True, slots=True)
class DecodeLaunch:
    """How the splits are launched. What is computed does not depend on it, in any bit.

    The number of warps is none of this: it says in which order scores are added up.

    Args:
        num_programs: that share the splits.
        num_stages: tiles that are read ahead.
    """

    num_programs: int
    num_stages: int = 3


@dataclass(frozen=True, slots=True)
class Partials:
    """Room for what the splits of one layer's attention come to; layers and steps share it.

    Shapes:
        out [items, H, D], stats [items, H, 2] (largest score, sum of weights), both float32
    """

    out: Tensor
    stats: Tensor


def make_partials(num_items: int, heads: Heads, device: torch.device) -> Partials:
    """Reserve the room for so many splits."""
    shape = (num_items, heads.num_heads)
    return Partials(
        torch.empty(*shape, heads.head_dim, dtype=torch.float32, device=device),
        torch.empty(*shape, 2, dtype=torch.float32, device=device),
    )


@triton.jit
def _split_tokens(context):
    """Tokens per split: the twin of shapes.split_tokens."""
    return _SPLIT_TOKENS * tl.maximum(1, tl.cdiv(context, _SPLIT_TOKENS * _MAX_SPLITS))


@triton.jit(do_not_specialize=["num_rows"])  # or the first step with another number compiles anew
def _splits_kernel(
    query,
    keys,
    values,
    partial_out,
    partial_stats,
    contexts,
    first_items,
    items,
    first_blocks,
    blocks,
    num_rows,
    num_kv_heads,
    window,
    scale,
    cap,
    slot_stride,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    members = tl.arange(0, GROUP_PADDED)
    dims = tl.arange(0, HEAD_PADDED)
    row_mask = (members < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    num_pieces = tl.load(first_items + num_rows) * num_kv_heads
    for piece in range(tl.program_id(0), num_pieces, tl.num_programs(0)):
        item, kv_head = piece // num_kv_heads, piece % num_kv_heads
        packed = tl.load(items + item)
        row, split = packed // _MAX_SPLITS, packed % _MAX_SPLITS
        context = tl.load(contexts + row)
        size = _split_tokens(context)
        first_seen = tl.maximum(0, context - window)
        start = tl.maximum(split * size, first_seen // TILE * TILE)
        end = tl.minimum(context, (split + 1) * size)
        if start < end:
            table = blocks + tl.load(first_blocks + row)
            heads = kv_head * GROUP + members
            where = heads[:, None] * HEAD_DIM + dims[None, :]
            row_heads = num_kv_heads * GROUP
            rows = tl.load(query + row.to(tl.int64) * row_heads * HEAD_DIM + where, mask=row_mask, other=0.0)
            out = tl.zeros([GROUP_PADDED, HEAD_PADDED], tl.float32)
            largest = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
            total = tl.zeros([GROUP_PADDED], tl.float32)
            for first in range(start, end, TILE):
                seen = first + tl.arange(0, TILE)
                is_inside = seen < end
                slots = cache_rows(table, seen, is_inside, BLOCK_SIZE)
                base = kv_head * HEAD_DIM
                key = load_rows(keys + base, slots, slot_stride, is_inside, rows.dtype, HEAD_DIM, HEAD_PADDED)
                value = load_rows(
                    values + base, slots, slot_stride, is_inside, rows.dtype, HEAD_DIM, HEAD_PADDED
                )
                scores = scaled_scores(rows, key, scale, cap, HAS_CAP)
                scores = tl.where((is_inside & (seen >= first_seen))[None, :], scores, float("-inf"))
                out, largest, total = accumulate(out, largest, total, scores, value)
            target = item.to(tl.int64) * row_heads
            tl.store(partial_out + target * HEAD_DIM + where, out, mask=row_mask)
            tl.store(partial_stats + (target + heads) * 2, largest, mask=members < GROUP)
            tl.store(partial_stats + (target + heads) * 2 + 1, total, mask=members < GROUP)


@triton.jit
def _combine_kernel(
    out,
    partial_out,
    partial_stats,
    contexts,
    first_items,
    num_heads,
    window,
    HEAD_DIM: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    first, end = tl.load(first_items + row), tl.load(first_items + row + 1)
    context = tl.load(contexts + row)
    splits = tl.arange(0, _MAX_SPLITS)
    # Splits before the window were skipped: what lies in their place was never written.
    is_live = (splits < end - first) & ((splits + 1) * _split_tokens(context) > context - window)
    where = (first + splits).to(tl.int64) * num_heads + head
    largest = tl.load(partial_stats + where * 2, mask=is_live, other=float("-inf"))
    total = tl.load(partial_stats + where * 2 + 1, mask=is_live, other=0.0)
    top = tl.max(largest, axis=0)
    weights = tl.exp2(largest - tl.where(top == float("-inf"), 0.0, top))
    dims = tl.arange(0, HEAD_PADDED)
    mask = is_live[:, None] & (dims < HEAD_DIM)[None, :]
    parts = tl.load(partial_out + where[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
    summed = tl.sum(parts * weights[:, None], axis=0)
    norm = tl.sum(total * weights, axis=0)
    attended = summed / tl.where(norm == 0.0, 1.0, norm)  # a padding row attends to nothing and gets zeros
    target = out + (row.to(tl.int64) * num_heads + head) * HEAD_DIM + dims
    tl.store(target, attended.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


def attend_decodes(
    query: Tensor,
    cache: tuple[Tensor, Tensor],
    block_size: int,
    work: DecodeWork,
    partials: Partials,
    heads: Heads,
    scoring: Scoring,
    out: Tensor,
    launch: DecodeLaunch,
) -> None:
    """Attend each request's one token over its context.

    Args:
        query: rotated; the first work.num_rows rows are read.
        cache: one layer's keys and values by slot, with those of this step; of the query's dtype or fp8.
        block_size: tokens per KV block.
        work: what each row sees.
        partials: room for all splits of `work`.
        heads: of the model.
        scoring: of the layer.
        out: its first rows are overwritten.
        launch: any; the results do not depend on it.
    Shapes:
        query, out [>= B, H * D], cache 2 x [N * S, Hkv, D]
    """
    keys, values = as_stored(cache)
    window = scoring.window or 2**30
    _splits_kernel[(launch.num_programs,)](
        query,
        keys,
        values,
        partials.out,
        partials.stats,
        work.contexts,
        work.first_items,
        work.items,
        work.first_blocks,
        work.blocks,
        work.num_rows,
        heads.num_kv_heads,
        window,
        scoring.scale,
        scoring.cap or 1.0,
        keys.stride(0),
        GROUP=heads.group,
        GROUP_PADDED=max(16, triton.next_power_of_2(heads.group)),
        HEAD_DIM=heads.head_dim,
        HEAD_PADDED=triton.next_power_of_2(heads.head_dim),
        BLOCK_SIZE=block_size,
        TILE=32 if heads.head_dim > 128 or query.dtype == torch.float32 or keys.dtype == torch.uint8 else 64,
        HAS_CAP=scoring.cap is not None,
        num_warps=4,
        num_stages=launch.num_stages,
    )
    _combine_kernel[(work.num_rows, heads.num_heads)](
        out,
        partials.out,
        partials.stats,
        work.contexts,
        work.first_items,
        heads.num_heads,
        window,
        HEAD_DIM=heads.head_dim,
        HEAD_PADDED=triton.next_power_of_2(heads.head_dim),
        num_warps=4,
    )
