"""A StepPlan as named lists of integers, and their places in one buffer that is copied to the device at once.

Decodes (requests that compute one token) come first, then chunks, each in the plan's order. Pure: no tensors.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.model.cuda.block_tables import BlockTables
from stoker_runtime.model.cuda.shapes import MAX_SPLITS, SPLIT_TOKENS

_ALIGNMENT = 16  # integers: kernels are compiled for aligned pointers, and anew for others

Integers = npt.NDArray[np.int32]
Fields = dict[str, Integers]


@dataclass(frozen=True, slots=True)
class PackedStep:
    """What a step computes.

    Args:
        fields: by name; see DecodeWork and ChunkWork. The last one is `blocks`, or `changes` of tables that
            stay on the device, whose length varies most.
        num_decodes: rows that are a request's only one, the first ones.
        num_tokens: all rows.
        sampled_rows: rows whose logits are wanted, in the plan's order.
    """

    fields: Fields
    num_decodes: int
    num_tokens: int
    sampled_rows: list[int]


def pack(
    plan: StepPlan,
    block_size: int,
    tokens_per_tile: int,
    num_rows: int = 0,
    tables: BlockTables | None = None,
) -> PackedStep:
    """Lay a plan out for the kernels.

    Args:
        plan: at least one request.
        block_size: tokens per KV block.
        tokens_per_tile: of the chunks' attention.
        num_rows: pad to so many rows, for a plan of decodes alone; 0 pads nothing.
        tables: that are on the device already; without, the plan's tables go along.
    """
    decodes = [request for request in plan.requests if len(request.token_ids) == 1]
    chunks = [request for request in plan.requests if len(request.token_ids) > 1]
    firsts, last_field = _gathered(plan) if tables is None else tables.changes(plan.requests)
    fields, first_blocks = _decode_fields(decodes, block_size, firsts, max(0, num_rows - len(decodes)))
    rows = {request.request_id: row for row, request in enumerate(decodes)}
    if chunks:
        of_chunks, last_rows = _chunk_fields(chunks, block_size, firsts, tokens_per_tile, len(decodes))
        for name in ("token_ids", "positions", "slots"):
            fields[name] = np.concatenate([fields[name], of_chunks.pop(name)])
        fields |= of_chunks
        rows |= last_rows
    fields["decode_first_blocks"] = first_blocks
    ends = ((request.num_samples, rows[request.request_id] + 1) for request in plan.requests)
    sampled_rows = [row for count, end in ends for row in range(end - count, end)]
    if chunks or len(sampled_rows) < len(decodes):
        fields["sampled_rows"] = np.array(sampled_rows, dtype=np.int32)
    fields["blocks" if tables is None else "changes"] = last_field
    return PackedStep(fields, len(decodes), len(fields["token_ids"]), sampled_rows)


def _gathered(plan: StepPlan) -> tuple[dict[str, int], Integers]:
    """Return all block tables in a row, and where each request's begins, by request id."""
    firsts, blocks = {}, array("i")
    for request in plan.requests:
        firsts[request.request_id] = len(blocks)
        blocks.fromlist(request.block_ids)
    return firsts, np.array(blocks, dtype=np.int32)


def _decode_fields(
    decodes: Sequence[ScheduledRequest], block_size: int, firsts: Mapping[str, int], num_padding: int
) -> tuple[Fields, Integers]:
    token_ids, positions, slots, first_blocks = array("i"), array("i"), array("i"), array("i")
    for request in decodes:
        position, table = request.num_computed_tokens, request.block_ids
        token_ids.append(request.token_ids[0])
        positions.append(position)
        slots.append(table[position // block_size] * block_size + position % block_size)
        first_blocks.append(firsts[request.request_id])
    padding = [0] * num_padding
    token_ids.fromlist(padding)
    first_blocks.fromlist(padding)
    slots.fromlist([-1] * num_padding)
    contexts = np.array([*(position + 1 for position in positions), *padding], dtype=np.int32)
    positions.fromlist(padding)
    first_items, items = split_items(contexts)
    fields = {
        "token_ids": np.array(token_ids, dtype=np.int32),
        "positions": np.array(positions, dtype=np.int32),
        "slots": np.array(slots, dtype=np.int32),
        "contexts": contexts,
        "first_items": first_items,
        "items": items,
    }
    return fields, np.array(first_blocks, dtype=np.int32)


def split_items(contexts: Integers) -> tuple[Integers, Integers]:
    """Return where each context's splits begin in the work list, [B + 1], and the list; see DecodeWork."""
    sizes = SPLIT_TOKENS * np.maximum(1, -(-contexts // (SPLIT_TOKENS * MAX_SPLITS)))
    counts = -(-contexts // sizes)
    first_items = np.zeros(len(contexts) + 1, dtype=np.int32)
    np.cumsum(counts, out=first_items[1:])
    rows = np.repeat(np.arange(len(contexts), dtype=np.int32), counts)
    splits = np.arange(first_items[-1], dtype=np.int32) - first_items[rows]
    return first_items, rows * MAX_SPLITS + splits


def _chunk_fields(
    chunks: Sequence[ScheduledRequest],
    block_size: int,
    firsts: Mapping[str, int],
    tokens_per_tile: int,
    first_row: int,
) -> tuple[Fields, dict[str, int]]:
    counts = np.array([len(request.token_ids) for request in chunks], dtype=np.int32)
    last_rows: dict[str, int] = {}
    token_ids: list[Integers] = []
    positions: list[Integers] = []
    slots: list[Integers] = []
    first_blocks: list[int] = []
    row = first_row
    for request in chunks:
        start, count = request.num_computed_tokens, len(request.token_ids)
        span = np.arange(start, start + count, dtype=np.int32)
        table = np.array(request.block_ids, dtype=np.int32)
        token_ids.append(np.array(request.token_ids, dtype=np.int32))
        positions.append(span)
        slots.append(table[span // block_size] * block_size + span % block_size)
        first_blocks.append(firsts[request.request_id])
        row += count
        last_rows[request.request_id] = row - 1
    tile_counts = -(-counts // tokens_per_tile)
    tile_requests = np.repeat(np.arange(len(chunks), dtype=np.int32), tile_counts)
    before = np.cumsum(tile_counts, dtype=np.int32) - tile_counts
    tile_tokens = (np.arange(len(tile_requests), dtype=np.int32) - before[tile_requests]) * tokens_per_tile
    fields = {
        "token_ids": np.concatenate(token_ids),
        "positions": np.concatenate(positions),
        "slots": np.concatenate(slots),
        "first_rows": (first_row + np.cumsum(counts) - counts).astype(np.int32),
        "num_tokens": counts,
        "num_computed": np.array([request.num_computed_tokens for request in chunks], dtype=np.int32),
        "chunk_first_blocks": np.array(first_blocks, dtype=np.int32),
        # The last tiles of a chunk see most, so they begin first.
        "tile_requests": tile_requests[::-1],
        "tile_tokens": tile_tokens[::-1],
    }
    return fields, last_rows


def offsets(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return where each field begins in the buffer, and under "" where the last one ends, all aligned."""
    found, end = {}, 0
    for name, size in sizes.items():
        found[name] = end
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    found[""] = end
    return found
