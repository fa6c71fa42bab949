"""Which sizes of steps are recorded, and which of them a step takes. Pure: no tensors.

A recording is launched with one shape, so a step takes the smallest that has room for it and leaves the rest
empty. Both kinds, steps of decodes alone and steps with chunks, are told apart by their rows: the other sizes
follow from that, because programs that find nothing to do cost too little for recordings of their own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from stoker_runtime.core.step import StepPlan

# Each may have a tile of queries that it does not fill, so more would make the launches of all steps larger
# for the few that have them; those are not recorded.
MOST_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Room:
    """What a recording has room for.

    Args:
        rows: tokens.
        decodes: requests that compute one token.
        chunks: requests that compute several; none in a step of decodes alone.
        tiles: of queries of the chunks, see chunk_attention.
    """

    rows: int
    decodes: int
    chunks: int = 0
    tiles: int = 0


def buckets(max_num_seqs: int) -> list[int]:
    """Return the numbers of decodes to record steps of."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, max_num_seqs, 16)]
    return [*(size for size in sizes if size < max_num_seqs), max_num_seqs]


def token_buckets(max_tokens: int) -> list[int]:
    """Return the numbers of tokens to record steps with chunks of.

    Up to some 256 tokens a step reads its weights longer than it multiplies rows with them, so rows that only
    fill it up cost little; from there on at most an eighth of the rows does.
    """
    if max_tokens < 2:  # a chunk has two tokens
        return []
    sizes, size = [], 16
    while size < max_tokens:
        sizes.append(size)
        size += max(16 if size < 64 else 32, 1 << max(0, size.bit_length() - 4))
    return [*sizes, max_tokens]


def most_tiles(num_tokens: int, num_chunks: int, tokens_per_tile: int) -> int:
    """Return how many tiles so many chunks may have together: each may have one that is not full."""
    return num_chunks + (num_tokens - num_chunks) // tokens_per_tile


@dataclass(frozen=True, slots=True)
class Rooms:
    """All recordings.

    Args:
        max_requests: of a step.
        decodes: for steps of decodes alone, by rows.
        mixed: for steps with chunks, likewise.
    """

    max_requests: int
    decodes: tuple[Room, ...]
    mixed: tuple[Room, ...]

    @classmethod
    def of(cls, sizes: Sequence[int], token_sizes: Sequence[int], tokens_per_tile: int) -> Rooms:
        """Make rooms for numbers of decodes (one at least) and numbers of tokens, both ascending."""
        max_requests = sizes[-1]
        mixed = []
        for size in token_sizes:
            chunks = min(size // 2, max_requests, MOST_CHUNKS)
            tiles = most_tiles(size, chunks, tokens_per_tile)
            mixed.append(Room(size, min(size, max_requests), chunks, tiles))
        return cls(max_requests, tuple(Room(size, size) for size in sizes), tuple(mixed))

    def choose(self, plan: StepPlan) -> Room | None:
        """Return the smallest room that holds a step, if one does."""
        num_tokens, num_requests = plan.num_tokens, len(plan.requests)
        if num_requests > self.max_requests:
            return None
        if num_tokens == num_requests:
            return _smallest(num_tokens, self.decodes)
        room = _smallest(num_tokens, self.mixed)
        num_chunks = sum(len(request.token_ids) > 1 for request in plan.requests)
        return None if room is None or num_chunks > room.chunks else room


def _smallest(num_rows: int, rooms: Sequence[Room]) -> Room | None:
    index = bisect_left(rooms, num_rows, key=lambda room: room.rows)
    return rooms[index] if index < len(rooms) else None
