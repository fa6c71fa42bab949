"""Which experts the rows of a step go through, and the rows of each expert, all decided on the device.

Nothing here depends on the host knowing who chose whom: launches and buffers have the size of the worst case,
so that a step with mixtures can be recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_PAIRS_PER_BLOCK = 1024
_ALIGNMENT = 4  # integers: kernels are compiled for aligned pointers, and anew for others


@dataclass(frozen=True, slots=True)
class Choices:
    """The experts of each row, ascending; rows that only fill up a recording have none.

    Shapes:
        experts [T, K] int32, -1 for none; weights [T, K]; counts [N] int32: pairs of each expert
    """

    experts: Tensor
    weights: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Groups:
    """Pairs of a row and an expert, numbered row * K + k, grouped by expert and cut into tiles.

    The places of an expert's pairs follow each other, in the order of their numbers. A tile holds at most
    `rows_per_tile` places of one expert.

    Args:
        pairs: the pair at each place.
        tile_experts: -1 for tiles that are not needed, the last ones.
        tile_starts: the first place of each tile.
        tile_ends: behind the last one.
        rows_per_tile: most places of a tile.
    Shapes:
        pairs [T * K] int32; tile_* [most tiles] int32
    """

    pairs: Tensor
    tile_experts: Tensor
    tile_starts: Tensor
    tile_ends: Tensor
    rows_per_tile: int


def rows_per_tile(num_pairs: int, num_experts: int) -> int:
    """Return the smallest tile that holds what an expert gets where all get the same: 16 to 128."""
    average = -(-num_pairs // max(1, min(num_pairs, num_experts)))
    return min(128, max(16, 1 << (average - 1).bit_length()))


def most_tiles(num_pairs: int, num_experts: int, tile: int) -> int:
    """Return how many tiles there may be: every expert that has pairs has one that is not full."""
    num_active = min(num_pairs, num_experts)
    return num_active + (num_pairs - num_active) // tile


@triton.jit
def _route_kernel(
    scores,
    slots,
    experts,
    weights,
    counts,
    num_experts,
    NUM_PER_TOKEN: tl.constexpr,
    NORMALIZES: tl.constexpr,
    EXPERTS_PADDED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, EXPERTS_PADDED)
    is_expert = index < num_experts
    score = tl.load(scores + row * num_experts + index, mask=is_expert, other=float("-inf")).to(tl.float32)
    top = tl.max(score, axis=0)
    top = tl.where(tl.abs(top) == float("inf"), float("nan"), top)  # as inf - inf would be
    powers = tl.exp(score - top)
    probability = powers / tl.sum(powers, axis=0)
    # NaN counts as most probable, so that it reaches the logits; what is chosen is never chosen again.
    rank = tl.where(probability == probability, probability, 2.0)
    rank = tl.where(is_expert, rank, -2.0)
    is_chosen = index < 0
    for _ in tl.static_range(NUM_PER_TOKEN):
        best = tl.argmax(rank, axis=0)  # of equal ones, the first
        is_chosen = is_chosen | (index == best)
        rank = tl.where(index == best, -1.0, rank)
    weight = tl.where(is_chosen, probability, 0.0)
    if NORMALIZES:
        weight = weight / tl.sum(weight, axis=0)
    place = row * NUM_PER_TOKEN + tl.cumsum(is_chosen.to(tl.int32), axis=0) - 1
    is_computed = tl.load(slots + row) >= 0
    tl.store(experts + place, tl.where(is_computed, index, -1), mask=is_chosen)
    tl.store(weights + place, weight.to(weights.dtype.element_ty), mask=is_chosen)
    tl.atomic_add(counts + index, 1, mask=is_chosen & is_computed, sem="relaxed")


@triton.jit(do_not_specialize=["num_pairs", "num_tiles"])  # or other numbers of rows compile anew
def _group_kernel(
    experts,
    counts,
    pairs,
    tile_experts,
    tile_starts,
    tile_ends,
    num_experts,
    num_pairs,
    num_tiles,
    ROWS: tl.constexpr,
    EXPERTS_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    expert = tl.program_id(0)
    index = tl.arange(0, EXPERTS_PADDED)
    offsets = tl.arange(0, BLOCK)
    all_counts = tl.load(counts + index, mask=index < num_experts, other=0)
    all_tiles = (all_counts + ROWS - 1) // ROWS
    start = tl.sum(tl.where(index < expert, all_counts, 0), axis=0)
    first_tile = tl.sum(tl.where(index < expert, all_tiles, 0), axis=0)
    end = start + tl.load(counts + expert)
    if end > start:
        found = start
        for first in range(0, num_pairs, BLOCK):
            pair = first + offsets
            is_mine = tl.load(experts + pair, mask=pair < num_pairs, other=-1) == expert
            place = found + tl.cumsum(is_mine.to(tl.int32), axis=0) - 1
            tl.store(pairs + place, pair, mask=is_mine)
            found += tl.sum(is_mine.to(tl.int32), axis=0)
    end_tile = first_tile + (end - start + ROWS - 1) // ROWS
    for tile in range(first_tile, end_tile, BLOCK):
        which = tile + offsets
        is_inside = which < end_tile
        begin = start + (which - first_tile) * ROWS
        tl.store(tile_experts + which, expert, mask=is_inside)
        tl.store(tile_starts + which, begin, mask=is_inside)
        tl.store(tile_ends + which, tl.minimum(begin + ROWS, end), mask=is_inside)
    if expert == num_experts - 1:
        for tile in range(end_tile, num_tiles, BLOCK):
            tl.store(tile_experts + tile + offsets, -1, mask=tile + offsets < num_tiles)


def choose_experts(scores: Tensor, slots: Tensor, num_per_token: int, normalizes_weights: bool) -> Choices:
    """Choose experts as mlp.Experts does, of equally probable ones those with the lowest numbers.

    Args:
        scores: what the router says.
        slots: where rows keep their keys; negative for rows that are not to be computed.
        num_per_token: how many experts each row goes through, K.
        normalizes_weights: their weights are made to add up to 1.
    Shapes:
        scores [T, N], contiguous; slots [T] int32
    """
    num_rows, num_experts = scores.shape
    choices = Choices(
        experts=torch.empty(num_rows, num_per_token, dtype=torch.int32, device=scores.device),
        weights=scores.new_empty(num_rows, num_per_token),
        counts=torch.zeros(num_experts, dtype=torch.int32, device=scores.device),
    )
    _route_kernel[(num_rows,)](
        scores,
        slots,
        choices.experts,
        choices.weights,
        choices.counts,
        num_experts,
        NUM_PER_TOKEN=num_per_token,
        NORMALIZES=normalizes_weights,
        EXPERTS_PADDED=triton.next_power_of_2(num_experts),
        num_warps=1,
    )
    return choices


def group_by_expert(choices: Choices) -> Groups:
    """Group the pairs by expert: a counting sort, each expert's pairs by a program of its own."""
    num_pairs, num_experts = choices.experts.numel(), choices.counts.shape[0]
    tile = rows_per_tile(num_pairs, num_experts)
    num_tiles = most_tiles(num_pairs, num_experts, tile)
    pairs = torch.empty_like(choices.experts).view(-1)
    reserved = triton.cdiv(num_tiles, _ALIGNMENT) * _ALIGNMENT
    tiles = torch.empty(3, reserved, dtype=torch.int32, device=pairs.device)[:, :num_tiles]
    groups = Groups(pairs, tiles[0], tiles[1], tiles[2], tile)
    _group_kernel[(num_experts,)](
        choices.experts,
        choices.counts,
        pairs,
        groups.tile_experts,
        groups.tile_starts,
        groups.tile_ends,
        num_experts,
        num_pairs,
        num_tiles,
        ROWS=tile,
        EXPERTS_PADDED=triton.next_power_of_2(num_experts),
        BLOCK=_PAIRS_PER_BLOCK,
        num_warps=4,
    )
    return groups
