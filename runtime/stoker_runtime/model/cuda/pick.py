"""Picks a token from each row of logits: the most likely one, or one drawn at a given place.

The counterpart of the sampler's own way for requests without top_k and top_p, in one launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096


@triton.jit
def _weights(row, index, size, largest, temperature, floor):
    """Unnormalised probabilities in float64: what lies below the floor or outside the row gets none."""
    scaled = (tl.load(row + index, mask=index < size, other=float("-inf")) - largest) / temperature
    return tl.where(scaled < floor, 0.0, tl.exp(scaled)).to(tl.float64)


@triton.jit
def _pick_kernel(logits, temperatures, floors, places, picked, size, TILE: tl.constexpr):
    request = tl.program_id(0).to(tl.int64)
    row = logits + request * size
    offsets = tl.arange(0, TILE)
    largest = tl.full([], float("-inf"), tl.float32)
    token = tl.full([], 0, tl.int32)
    for first in range(0, size, TILE):
        index = first + offsets
        values = tl.load(row + index, mask=index < size, other=float("-inf"))
        top = tl.max(values, axis=0)
        if top > largest:  # of equal ones, the first
            largest = top
            token = (first + tl.argmax(values, axis=0)).to(tl.int32)
    temperature = tl.load(temperatures + request)
    if temperature > 0:
        floor = tl.load(floors + request)
        total = tl.full([], 0.0, tl.float64)
        for first in range(0, size, TILE):
            total += tl.sum(_weights(row, first + offsets, size, largest, temperature, floor), axis=0)
        target = tl.load(places + request) * total
        before = tl.full([], 0.0, tl.float64)
        is_found = False
        for first in range(0, size, TILE):
            if not is_found:
                weights = _weights(row, first + offsets, size, largest, temperature, floor)
                mass = tl.sum(weights, axis=0)
                if before + mass > target:
                    inside = tl.cumsum(weights, axis=0)
                    # Two sums of the same weights may differ in their last bit; past the end is no token.
                    rest = tl.minimum(target - before, tl.max(inside, axis=0) * (1 - 1e-12))
                    token = (first + tl.sum((inside <= rest).to(tl.int32), axis=0)).to(tl.int32)
                    is_found = True
                before += mass
    tl.store(picked + request, token)


def pick(logits: Tensor, temperatures: Tensor, floors: Tensor, places: Tensor) -> Tensor:
    """Pick a token per row.

    Args:
        logits: not all of a row -inf, none NaN; where they are, the result means nothing.
        temperatures: 0 takes the most likely token, of equal ones the first.
        floors: tokens whose logit is below the largest by more than floor * temperature get no chance.
        places: strictly between 0 and 1, of the cumulative distribution in vocabulary order.
    Shapes:
        logits [B, V] float32, contiguous; temperatures and floors [B] float32; places [B] float64

    Returns:
        Token ids, [B] int32.
    """
    picked = torch.empty(logits.shape[0], dtype=torch.int32, device=logits.device)
    _pick_kernel[(logits.shape[0],)](
        logits, temperatures, floors, places, picked, logits.shape[1], TILE=_TILE, num_warps=8
    )
    return picked
