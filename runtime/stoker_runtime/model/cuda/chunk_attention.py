"""Attention of chunks: any number of requests with any number of tokens each, over the paged cache.

One program takes a tile of queries of one request (some tokens times the heads that share a KV head, as rows
of one product) and walks over what they see. Tiles come as a list from the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stoker_runtime.model.cuda.attention_tile import accumulate, cache_rows, load_rows, scaled_scores
from stoker_runtime.model.cuda.shapes import Heads, Scoring
from stoker_runtime.model.cuda.stored import as_stored


@dataclass(frozen=True, slots=True)
class ChunkWork:
    """Which tokens the chunks of a step attend to, on the device.

    Args:
        first_rows: each request's first row of the step's tokens.
        num_tokens: each request's rows.
        num_computed: each request's tokens before them.
        first_blocks: where each request's block table begins in `blocks`.
        blocks: block tables.
        tile_requests: the request of each tile of queries; -1 for tiles that are not needed.
        tile_tokens: the first of its tokens, counted from the request's first row.
    Shapes:
        [requests] and [tiles], all int32
    """

    first_rows: Tensor
    num_tokens: Tensor
    num_computed: Tensor
    first_blocks: Tensor
    blocks: Tensor
    tile_requests: Tensor
    tile_tokens: Tensor

    @classmethod
    def of(cls, fields: Mapping[str, Tensor]) -> ChunkWork:
        """Take it from step_layout.pack's fields."""
        of_requests = ("first_rows", "num_tokens", "num_computed", "chunk_first_blocks", "blocks")
        return cls(*(fields[name] for name in (*of_requests, "tile_requests", "tile_tokens")))


@dataclass(frozen=True, slots=True)
class ChunkLaunch:
    """How a tile is computed.

    Args:
        num_warps: that share it.
        num_stages: tiles of keys that are read ahead.
    """

    num_warps: int
    num_stages: int = 2

    @classmethod
    def default(cls, heads: Heads, dtype: torch.dtype) -> ChunkLaunch:
        """As many warps as have registers for a tile."""
        return cls(4 if tile_rows(heads, dtype) == 32 else 8)


def tile_rows(heads: Heads, dtype: torch.dtype) -> int:
    """Rows of a tile: tokens times heads of a group. As many as the registers of 8 warps hold."""
    if dtype == torch.float32:
        return 32
    return 64 if heads.head_dim > 128 else 128


def tokens_per_tile(heads: Heads, dtype: torch.dtype) -> int:
    """Tokens whose queries make up a tile."""
    return tile_rows(heads, dtype) // heads.group


@triton.jit
def _attend_range(
    out,
    largest,
    total,
    rows,
    positions,
    keys,
    values,
    table,
    start,
    end,
    context,
    window,
    scale,
    cap,
    slot_stride,
    HEAD_DIM: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_CAP: tl.constexpr,
    IS_MASKED: tl.constexpr,
):
    """Attend over positions start .. end; IS_MASKED unless every query sees all of them."""
    for first in range(start, end, TILE):
        seen = first + tl.arange(0, TILE)
        is_inside = seen < context
        slots = cache_rows(table, seen, is_inside, BLOCK_SIZE)
        key = load_rows(keys, slots, slot_stride, is_inside, rows.dtype, HEAD_DIM, HEAD_PADDED)
        value = load_rows(values, slots, slot_stride, is_inside, rows.dtype, HEAD_DIM, HEAD_PADDED)
        scores = scaled_scores(rows, key, scale, cap, HAS_CAP)
        if IS_MASKED:
            distance = positions[:, None] - seen[None, :]
            scores = tl.where((distance >= 0) & (distance < window), scores, float("-inf"))
        out, largest, total = accumulate(out, largest, total, scores, value)
    return out, largest, total


@triton.jit
def _chunks_kernel(
    query,
    keys,
    values,
    out,
    first_rows,
    num_tokens,
    num_computed,
    first_blocks,
    blocks,
    tile_requests,
    tile_tokens,
    num_kv_heads,
    window,
    scale,
    cap,
    slot_stride,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    kv_head = tl.program_id(0)
    request = tl.load(tile_requests + tl.program_id(1))
    if request < 0:  # a tile that only a larger step would need
        return
    first_token = tl.load(tile_tokens + tl.program_id(1))
    count = tl.load(num_tokens + request)
    computed = tl.load(num_computed + request)
    table = blocks + tl.load(first_blocks + request)
    members = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_PADDED)
    tokens = first_token + members // GROUP
    is_row = (members < TOKENS * GROUP) & (tokens < count)
    heads = kv_head * GROUP + members % GROUP
    row_ids = (tl.load(first_rows + request) + tokens).to(tl.int64)
    where = (row_ids * num_kv_heads * GROUP + heads)[:, None] * HEAD_DIM + dims[None, :]
    mask = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    rows = tl.load(query + where, mask=mask, other=0.0)

    # What all rows see lies between two borders: before is the windows' edge, behind is the diagonal.
    first_position = computed + first_token
    last_position = computed + tl.minimum(count, first_token + TOKENS) - 1
    start = tl.maximum(0, first_position - window + 1) // TILE * TILE
    end = last_position + 1
    inner_start = tl.minimum(tl.cdiv(tl.maximum(0, last_position - window + 1), TILE) * TILE, end)
    inner_end = tl.maximum(inner_start, (first_position + 1) // TILE * TILE)
    keys += kv_head * HEAD_DIM
    values += kv_head * HEAD_DIM
    positions = computed + tokens
    acc = tl.zeros([ROWS, HEAD_PADDED], tl.float32)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for part in tl.static_range(3):
        part_start = start if part == 0 else (inner_start if part == 1 else inner_end)
        part_end = inner_start if part == 0 else (inner_end if part == 1 else end)
        acc, largest, total = _attend_range(
            acc, largest, total, rows, positions, keys, values, table, part_start, part_end, end, window,
            scale, cap, slot_stride, HEAD_DIM, HEAD_PADDED, BLOCK_SIZE, TILE, HAS_CAP, part != 1,
        )  # fmt: skip
    attended = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + where, attended.to(out.dtype.element_ty), mask=mask)


def attend_chunks(
    query: Tensor,
    cache: tuple[Tensor, Tensor],
    block_size: int,
    work: ChunkWork,
    heads: Heads,
    scoring: Scoring,
    out: Tensor,
    launch: ChunkLaunch,
) -> None:
    """Attend each chunk's tokens over what comes before them and themselves.

    Args:
        query: rotated.
        cache: one layer's keys and values by slot, with those of this step; of the query's dtype or fp8.
        block_size: tokens per KV block.
        work: where the chunks are and what they see; its tiles have tokens_per_tile tokens.
        heads: of the model.
        scoring: of the layer.
        out: the chunks' rows are overwritten.
        launch: of the tiles.
    Shapes:
        query, out [T, H * D], cache 2 x [N * S, Hkv, D]
    """
    keys, values = as_stored(cache)
    rows = tile_rows(heads, query.dtype)
    _chunks_kernel[(heads.num_kv_heads, work.tile_requests.shape[0])](
        query,
        keys,
        values,
        out,
        work.first_rows,
        work.num_tokens,
        work.num_computed,
        work.first_blocks,
        work.blocks,
        work.tile_requests,
        work.tile_tokens,
        heads.num_kv_heads,
        scoring.window or 2**30,
        scoring.scale,
        scoring.cap or 1.0,
        keys.stride(0),
        GROUP=heads.group,
        TOKENS=tokens_per_tile(heads, query.dtype),
        ROWS=rows,
        HEAD_DIM=heads.head_dim,
        HEAD_PADDED=triton.next_power_of_2(heads.head_dim),
        BLOCK_SIZE=block_size,
        # bytes are decoded in registers, which hold half as many keys then
        TILE=64 if rows == 128 and keys.dtype == query.dtype else 32,
        HAS_CAP=scoring.cap is not None,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
