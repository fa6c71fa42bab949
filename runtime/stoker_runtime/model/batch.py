"""One StepPlan as tensors: made once per step, read by every layer.

Requests are put in an order that suits attention: those that compute one token first, by context length,
cut into groups of similar length that are padded together; then each longer chunk on its own, cut into tiles.

Keys are read in whole segments of SEGMENT positions, counted from the request's first token, so that where a
context is cut depends on nothing but positions: attention.py says what that is good for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.core.step import ScheduledRequest, StepPlan

SEGMENT = 128  # positions; a multiple of what a vector holds
# Query rows of one product are a multiple of this: fewer, and libraries add in another order.
ROWS = 4
# A tile's scores should stay in the second-level cache, and never take more than some tens of megabytes.
_TILE_SCORES = 1 << 19
_MOST_TILE_TOKENS = 64
# A group is cut where padding would add more than a quarter, but not below this many slots of waste in all.
_MAX_PADDING = 1.25
_FREE_PADDING_SLOTS = 512
# Nor does it have more slots than this with their padding: what is gathered should still be in a cache when
# it is multiplied.
_MOST_SLOTS = 4096


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Requests that compute one token each, attended in one padded call.

    Args:
        rows: their consecutive rows of the step's tokens.
        places: rows of the cache [N * S * Hkv] that each token sees, [B * Hkv * C], padded with one of the
            request's own, so that no request ever reads what another one stored.
        mask: 0 for context, -inf for padding, [B, 1, C].
    """

    rows: slice
    places: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Tile:
    """Consecutive tokens of a chunk that are attended in one call.

    Args:
        tokens: of the chunk, the first and the one behind the last, a multiple of ROWS apart: the last tile's
            may lie behind the chunk's end.
        seen: what any of them sees, among what the chunk sees.
        num_open: of what is seen, how many at the beginning all of them see.
        mask: 0 or -inf for the rest, [tokens, 1, rest].
    """

    tokens: tuple[int, int]
    seen: slice
    num_open: int
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Several tokens of one request.

    Args:
        rows: their consecutive rows of the step's tokens.
        places: rows of the cache that any of them sees, [Hkv * C], padded like a DecodeGroup's.
        tiles: all of them.
    """

    rows: slice
    places: Tensor
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Reach:
    """What each token of a step attends to, in the layers that share a window. Rows are in step order."""

    decode_groups: tuple[DecodeGroup, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's tensors.

    Args:
        reaches: by window.
    Shapes:
        token_ids, positions, slot_mapping [T]; sampled_rows [positions whose logits are wanted], see
            StepPlan.logit_rows
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    reaches: Mapping[int | None, Reach]
    sampled_rows: Tensor


@dataclass(frozen=True, slots=True)
class _Layout:
    """How slots and masks are made."""

    block_size: int
    window: int | None
    num_heads: int
    num_kv_heads: int
    device: torch.device

    def first_seen(self, position: int) -> int:
        """The first position that the token at `position` attends to."""
        return 0 if self.window is None else max(0, position + 1 - self.window)

    def segments(self, first: int, last: int) -> tuple[int, int]:
        """The positions of the whole segments that tokens at `first` to `last` see: begin and end."""
        return _floor(self.first_seen(first), SEGMENT), _ceil(last + 1, SEGMENT)

    def mask(self, queries: Tensor, seen: Tensor) -> Tensor:
        """0 where a position sees another and -inf elsewhere: [..., T], [..., C] -> [..., T, C]."""
        seen, queries = seen.unsqueeze(-2), queries.unsqueeze(-1)
        is_hidden = seen > queries
        if self.window is not None:
            is_hidden |= seen <= queries - self.window
        return torch.zeros(is_hidden.shape).masked_fill_(is_hidden, float("-inf")).to(self.device)

    def places(self, block_ids: Tensor, positions: Tensor) -> Tensor:
        """Rows of the cache: block tables [B, M], positions [B, C] -> [B * Hkv * C]."""
        slots = block_ids.gather(-1, positions // self.block_size) * self.block_size
        slots = (slots + positions % self.block_size).unsqueeze(1) * self.num_kv_heads
        return (slots + torch.arange(self.num_kv_heads).unsqueeze(1)).flatten().to(self.device)

    def tile_tokens(self, num_seen: int) -> int:
        """Tokens of one tile, a multiple of ROWS."""
        most = _TILE_SCORES // (self.num_heads * num_seen)
        return max(ROWS, min(_floor(most, ROWS), _MOST_TILE_TOKENS))


def _floor(count: int, step: int) -> int:
    return count // step * step


def _ceil(count: int, step: int) -> int:
    return -(-count // step) * step


def pack_batch(
    plan: StepPlan,
    block_size: int,
    windows: Sequence[int | None],
    num_heads: int,
    num_kv_heads: int,
    device: torch.device,
) -> Batch:
    """Turn a plan into tensors.

    Args:
        plan: at least one request.
        block_size: tokens per KV block.
        windows: of the model's layers, each once.
        num_heads: of queries.
        num_kv_heads: of keys and values.
        device: where the tensors go.
    """
    decodes = sorted((r for r in plan.requests if len(r.token_ids) == 1), key=_context)
    longer = [r for r in plan.requests if len(r.token_ids) > 1]
    token_ids: list[int] = []
    positions: list[int] = []
    slot_mapping: list[int] = []
    first_rows: dict[str, int] = {}
    for request in (*decodes, *longer):
        span = range(request.num_computed_tokens, _context(request))
        first_rows[request.request_id] = len(token_ids)
        token_ids += request.token_ids
        positions += span
        slot_mapping += [request.block_ids[p // block_size] * block_size + p % block_size for p in span]

    layouts = {window: _Layout(block_size, window, num_heads, num_kv_heads, device) for window in windows}
    return Batch(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        slot_mapping=torch.tensor(slot_mapping, device=device),
        reaches={window: _reach(decodes, longer, layout) for window, layout in layouts.items()},
        sampled_rows=torch.tensor(
            plan.logit_rows(first_rows[request.request_id] for request in plan.requests),
            dtype=torch.long,
            device=device,
        ),
    )


def _context(request: ScheduledRequest) -> int:
    return request.num_computed_tokens + len(request.token_ids)


def _groups(decodes: Sequence[ScheduledRequest]) -> list[list[ScheduledRequest]]:
    """Cut requests, sorted by context length, into groups worth padding to their longest."""
    groups: list[list[ScheduledRequest]] = []
    total = 0
    for request in decodes:
        length = _context(request)
        if groups:
            padded = length * (len(groups[-1]) + 1)
            most = max((total + length) * _MAX_PADDING, total + length + _FREE_PADDING_SLOTS)
            if padded <= min(most, _MOST_SLOTS):
                groups[-1].append(request)
                total += length
                continue
        groups.append([request])
        total = length
    return groups


def _reach(decodes: Sequence[ScheduledRequest], longer: Sequence[ScheduledRequest], layout: _Layout) -> Reach:
    groups, chunks, first = [], [], 0
    for members in _groups(decodes):
        groups.append(_decode_group(members, first, layout))
        first += len(members)
    for request in longer:
        chunks.append(_chunk(request, first, layout))
        first += len(request.token_ids)
    return Reach(tuple(groups), tuple(chunks))


def _decode_group(members: Sequence[ScheduledRequest], first: int, layout: _Layout) -> DecodeGroup:
    last = torch.tensor([[_context(request) - 1] for request in members])  # [B, 1]
    spans = [layout.segments(position, position) for (position,) in last.tolist()]
    num_seen = max(end - begin for begin, end in spans)
    seen = torch.tensor([[begin] for begin, _ in spans]) + torch.arange(num_seen)  # [B, C]
    num_blocks = max(len(request.block_ids) for request in members)
    tables = torch.tensor([r.block_ids + [0] * (num_blocks - len(r.block_ids)) for r in members])
    places = layout.places(tables, seen.minimum(last))
    return DecodeGroup(slice(first, first + len(members)), places, layout.mask(last, seen))


def _chunk(request: ScheduledRequest, first: int, layout: _Layout) -> Chunk:
    num_tokens, start = len(request.token_ids), request.num_computed_tokens
    end = start + num_tokens
    begin, seen_end = layout.segments(start, end - 1)
    step = layout.tile_tokens(seen_end - begin)
    tiles = tuple(
        _tile(at, min(at + step, _ceil(num_tokens, ROWS)), start, begin, layout)
        for at in range(0, num_tokens, step)
    )
    seen = torch.arange(begin, begin + max(tile.seen.stop for tile in tiles)).clamp_(max=end - 1)
    places = layout.places(torch.tensor([request.block_ids]), seen.unsqueeze(0))
    return Chunk(slice(first, first + num_tokens), places, tiles)


def _tile(at: int, to: int, start: int, begin: int, layout: _Layout) -> Tile:
    """Tokens `at` to `to` of a chunk that starts at position `start` and sees those from `begin` on."""
    queries = torch.arange(start + at, start + to)
    seen_begin, seen_end = layout.segments(start + at, start + to - 1)
    is_cut = layout.first_seen(start + to - 1) > seen_begin
    num_open = 0 if is_cut else _floor(start + at, SEGMENT) - seen_begin
    mask = layout.mask(queries, torch.arange(seen_begin + num_open, seen_end))
    return Tile((at, to), slice(seen_begin - begin, seen_end - begin), num_open, mask.unsqueeze(1))
