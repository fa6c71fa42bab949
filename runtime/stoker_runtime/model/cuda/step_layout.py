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
from stoker_runtime.model.cuda.rooms import Room
from stoker_runtime.model.cuda.shapes import MAX_SPLITS, SPLIT_TOKENS

_ALIGNMENT = 16  # integers: kernels are compiled for aligned pointers, and anew for others

# Fields of rows and what they hold in one that does nothing: it stores nothing and chooses no experts.
_OF_ROWS = {"token_ids": 0, "positions": 0, "slots": -1}
_OF_CHUNKS = ("first_rows", "num_tokens", "num_computed", "chunk_first_blocks")

Integers = npt.NDArray[np.int32]
Fields = dict[str, Integers]


@dataclass(frozen=True, slots=True)
class PackedStep:
    """What a step computes.

    Args:
        fields: by name; see DecodeWork and ChunkWork. The last one is `blocks`, or `changes` of tables that
            stay on the device, whose length varies most.
        num_decodes: rows that are a request's only one, the first ones.
        num_tokens: all rows, with those that fill up a recording.
        sampled_rows: rows whose logits are wanted, see StepPlan.logit_rows.
        samples_each: those are the decodes' rows, one after the other, and there are no others.
    """

    fields: Fields
    num_decodes: int
    num_tokens: int
    sampled_rows: list[int]
    samples_each: bool


def pack(
    plan: StepPlan,
    block_size: int,
    tokens_per_tile: int,
    room: Room | None = None,
    tables: BlockTables | None = None,
) -> PackedStep:
    """Lay a plan out for the kernels.

    Args:
        plan: at least one request.
        block_size: tokens per KV block.
        tokens_per_tile: of the chunks' attention.
        room: of a recording, which is filled up with rows, requests and tiles that do nothing; one with room
            for chunks is for plans that have some.
        tables: that are on the device already; without, the plan's tables go along.
    """
    decodes = [request for request in plan.requests if len(request.token_ids) == 1]
    chunks = [request for request in plan.requests if len(request.token_ids) > 1]
    room = room or Room(plan.num_tokens, len(decodes), len(chunks))
    firsts, last_field = _gathered(plan) if tables is None else tables.changes(plan.requests)
    fields = _decode_fields(decodes, block_size, firsts, room)
    rows = {request.request_id: row for row, request in enumerate(decodes)}
    if chunks:
        of_chunks, first_rows = _chunk_fields(chunks, block_size, firsts, tokens_per_tile, len(decodes), room)
        for name in _OF_ROWS:
            fields[name] = np.concatenate([fields[name], of_chunks.pop(name)])
        fields |= of_chunks
        rows |= first_rows
    for name, unused in _OF_ROWS.items():
        fields[name] = _filled(fields[name], room.rows, unused)
    sampled_rows = plan.logit_rows(rows[request.request_id] for request in plan.requests)
    fields["sampled_rows"] = np.array(sampled_rows, dtype=np.int32)
    fields["blocks" if tables is None else "changes"] = last_field
    samples_each = not chunks and sampled_rows == [*range(len(decodes))]
    return PackedStep(fields, len(decodes), room.rows, sampled_rows, samples_each)


def largest_fields(room: Room, max_splits: int, max_blocks: int) -> dict[str, int]:
    """Return the sizes of the fields that pack makes for a room, each at its largest.

    Args:
        room: of the recording.
        max_splits: of one context.
        max_blocks: of one request.
    """
    sizes = dict.fromkeys(_OF_ROWS, room.rows)
    sizes |= {"contexts": room.decodes, "decode_first_blocks": room.decodes, "first_items": room.decodes + 1}
    if room.chunks:
        sizes |= dict.fromkeys(_OF_CHUNKS, room.chunks)
        sizes |= {"tile_requests": room.tiles, "tile_tokens": room.tiles}
    sizes |= {"sampled_rows": room.rows, "items": room.decodes * max_splits}
    num_requests = min(room.rows, room.decodes + room.chunks)
    return sizes | {"changes": 2 * num_requests * max_blocks}


def _gathered(plan: StepPlan) -> tuple[dict[str, int], Integers]:
    """Return all block tables in a row, and where each request's begins, by request id."""
    firsts, blocks = {}, array("i")
    for request in plan.requests:
        firsts[request.request_id] = len(blocks)
        blocks.fromlist(request.block_ids)
    return firsts, np.array(blocks, dtype=np.int32)


def _filled(values: Integers, size: int, unused: int = 0) -> Integers:
    """Return the values and as many unused ones as make up the size."""
    missing = size - len(values)
    return values if missing <= 0 else np.concatenate([values, np.full(missing, unused, dtype=np.int32)])


def _decode_fields(
    decodes: Sequence[ScheduledRequest], block_size: int, firsts: Mapping[str, int], room: Room
) -> Fields:
    token_ids, positions, slots, first_blocks = array("i"), array("i"), array("i"), array("i")
    for request in decodes:
        position, table = request.num_computed_tokens, request.block_ids
        token_ids.append(request.token_ids[0])
        positions.append(position)
        slots.append(table[position // block_size] * block_size + position % block_size)
        first_blocks.append(firsts[request.request_id])
    of_positions = np.array(positions, dtype=np.int32)
    contexts = _filled(of_positions + 1, room.decodes)
    first_items, items = split_items(contexts)
    return {
        "token_ids": np.array(token_ids, dtype=np.int32),
        "positions": of_positions,
        "slots": np.array(slots, dtype=np.int32),
        "contexts": contexts,
        "first_items": first_items,
        "items": items,
        "decode_first_blocks": _filled(np.array(first_blocks, dtype=np.int32), room.decodes),
    }


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
    room: Room,
) -> tuple[Fields, dict[str, int]]:
    counts = np.array([len(request.token_ids) for request in chunks], dtype=np.int32)
    first_rows: dict[str, int] = {}
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
        first_rows[request.request_id] = row
        row += count
    tile_counts = -(-counts // tokens_per_tile)
    tile_requests = np.repeat(np.arange(len(chunks), dtype=np.int32), tile_counts)
    before = np.cumsum(tile_counts, dtype=np.int32) - tile_counts
    tile_tokens = (np.arange(len(tile_requests), dtype=np.int32) - before[tile_requests]) * tokens_per_tile
    of_requests = (
        first_row + np.cumsum(counts, dtype=np.int32) - counts,
        counts,
        np.array([request.num_computed_tokens for request in chunks], dtype=np.int32),
        np.array(first_blocks, dtype=np.int32),
    )
    fields = {
        "token_ids": np.concatenate(token_ids),
        "positions": np.concatenate(positions),
        "slots": np.concatenate(slots),
        # The last tiles of a chunk see most, so they begin first.
        "tile_requests": _filled(tile_requests[::-1], room.tiles, -1),
        "tile_tokens": _filled(tile_tokens[::-1], room.tiles),
    }
    for name, values in zip(_OF_CHUNKS, of_requests, strict=True):
        fields[name] = _filled(values, room.chunks)
    return fields, first_rows


def offsets(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return where each field begins in the buffer, and under "" where the last one ends, all aligned."""
    found, end = {}, 0
    for name, size in sizes.items():
        found[name] = end
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    found[""] = end
    return found
