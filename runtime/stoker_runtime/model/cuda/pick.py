"""Picks a token from each row of logits: the most likely one, or one drawn at a given place.

All of a row's settings are honoured in one launch, and nothing is sorted. What top_k and top_p keep is all
tokens above a threshold and some of those at it. The threshold is found by bisection over how far the logits
lie below the largest, counting or weighing what lies nearer; each bound moves on to the next distance that
occurs, so the search ends at an exact value after some twenty passes over a row that the cache holds.

Source of the search: FlashInfer's sampling without sorting (Ye et al. 2025, arXiv 2501.01005, and its blog of
March 2025), which moves two pivots and draws anew when it was unlucky. Here one draw has to do, because the
same place must give the same token as in `model.picker`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096
# Of a row's settings.
NUM_SETTINGS = 5
_TEMPERATURE, _FLOOR, _PLACE, _TOP_K, _TOP_P = (tl.constexpr(column) for column in range(NUM_SETTINGS))
# Beyond this distance the weight is 0 in float32. Distances are compared as the integers of their bits, which
# is the same order since none is negative.
_LIMIT = tl.constexpr(0x42D00000)  # 104.0


@triton.jit
def _distances(row, index, size, largest, temperature):
    """Bits of how far logits lie below the largest, over temperature; infinitely far outside the row."""
    values = tl.load(row + index, mask=index < size, other=float("-inf"))
    return tl.div_rn(largest - values, temperature).to(tl.int32, bitcast=True)


@triton.jit
def _weights(distances):
    """Unnormalised probabilities."""
    return tl.exp(-distances.to(tl.float32, bitcast=True)).to(tl.float64)


@triton.jit
def _measure(row, size, largest, temperature, middle, limit, TILE: tl.constexpr):
    """Tell what lies within `middle`, how far out that reaches, and where the next begins, at most `limit`.

    Returns:
        Count and mass of the tokens within, their largest distance, the smallest distance beyond.
    """
    count = tl.full([], 0, tl.int32)
    mass = tl.full([], 0.0, tl.float64)
    last = tl.full([], 0, tl.int32)
    following = limit
    for first in range(0, size, TILE):
        distances = _distances(row, first + tl.arange(0, TILE), size, largest, temperature)
        is_within = distances <= middle
        count += tl.sum(is_within.to(tl.int32), axis=0)
        mass += tl.sum(tl.where(is_within, _weights(distances), 0.0), axis=0)
        last = tl.maximum(last, tl.max(tl.where(is_within, distances, 0), axis=0))
        following = tl.minimum(following, tl.min(tl.where(is_within, limit, distances), axis=0))
    return count, mass, last, following


@triton.jit
def _threshold(row, size, largest, temperature, wanted_count, wanted_mass, limit, TILE: tl.constexpr):
    """Return the smallest distance within which lie so many tokens and so much mass; `limit` if none does."""
    low = tl.full([], 0, tl.int32)
    high = limit
    while low < high:
        middle = low + (high - low) // 2
        count, mass, last, following = _measure(row, size, largest, temperature, middle, limit, TILE)
        if (count >= wanted_count) & (mass >= wanted_mass):
            high = last
        else:
            low = following
    return low


@triton.jit
def _cut(row, size, largest, temperature, limit, top_k, top_p, TILE: tl.constexpr):
    """Return a distance, and how many of the tokens at it are kept beside all that are nearer."""
    quota = size
    if (top_k > 0) & (top_k < size):
        limit = _threshold(row, size, largest, temperature, top_k, 0.0, limit, TILE)
        nearer, _, _, _ = _measure(row, size, largest, temperature, limit - 1, limit, TILE)
        quota = top_k - nearer
    if top_p < 1:
        count, mass, _, _ = _measure(row, size, largest, temperature, limit, limit, TILE)
        nearer, before, _, _ = _measure(row, size, largest, temperature, limit - 1, limit, TILE)
        total = before + (mass - before) * (tl.minimum(quota, count - nearer) / tl.maximum(1, count - nearer))
        wanted = top_p * total
        found = _threshold(row, size, largest, temperature, 1, wanted, limit, TILE)
        _, before, _, _ = _measure(row, size, largest, temperature, found - 1, found, TILE)
        weight = _weights(found)
        # The most likely token always stays: a top_p may be too small for a float.
        needed = tl.maximum(1.0, tl.ceil((wanted - before) / tl.where(weight > 0, weight, 1.0)))
        most = tl.where(found == limit, quota, size)
        quota = tl.where(needed < most, needed, most).to(tl.int32)
        limit = found
    return limit, quota


@triton.jit
def _kept(row, first, size, largest, temperature, limit, quota, num_equal, TILE: tl.constexpr):
    """Return the weights of a tile, 0 for what is ruled out, and how many tokens so far lie at the limit."""
    distances = _distances(row, first + tl.arange(0, TILE), size, largest, temperature)
    is_equal = (distances == limit).to(tl.int32)
    rank = num_equal + tl.cumsum(is_equal, axis=0)
    is_kept = (distances < limit) | ((is_equal > 0) & (rank <= quota))
    return tl.where(is_kept, _weights(distances), 0.0), num_equal + tl.sum(is_equal, axis=0)


@triton.jit
def _draw(row, size, largest, temperature, limit, quota, place, token, TILE: tl.constexpr):
    """Return the token at a place, 0 to 1, of what is kept, in vocabulary order."""
    total = tl.full([], 0.0, tl.float64)
    num_equal = tl.full([], 0, tl.int32)
    for first in range(0, size, TILE):
        weights, num_equal = _kept(row, first, size, largest, temperature, limit, quota, num_equal, TILE)
        total += tl.sum(weights, axis=0)
    target = place * total
    before = tl.full([], 0.0, tl.float64)
    num_equal = tl.full([], 0, tl.int32)
    is_found = False
    for first in range(0, size, TILE):
        if not is_found:
            weights, num_equal = _kept(row, first, size, largest, temperature, limit, quota, num_equal, TILE)
            mass = tl.sum(weights, axis=0)
            if before + mass > target:
                inside = tl.cumsum(weights, axis=0)
                # Two sums of the same weights may differ in their last bit; past the end is no token.
                rest = tl.minimum(target - before, tl.max(inside, axis=0) * (1 - 1e-12))
                token = (first + tl.sum((inside <= rest).to(tl.int32), axis=0)).to(tl.int32)
                is_found = True
            before += mass
    return token


@triton.jit
def _pick_kernel(logits, settings, picked, size, NUM_SETTINGS: tl.constexpr, TILE: tl.constexpr):
    request = tl.program_id(0).to(tl.int64)
    row = logits + request * size
    own = settings + request * NUM_SETTINGS
    largest = tl.full([], float("-inf"), tl.float32)
    token = tl.full([], 0, tl.int32)
    num_bad = tl.full([], 0, tl.int32)
    for first in range(0, size, TILE):
        index = first + tl.arange(0, TILE)
        values = tl.load(row + index, mask=index < size, other=float("-inf"))
        values = tl.where(values == values, values, float("inf"))  # a NaN is as bad, and compares
        num_bad += tl.sum((values == float("inf")).to(tl.int32), axis=0)
        top = tl.max(values, axis=0)
        if top > largest:  # of equal ones, the first
            largest = top
            token = (first + tl.argmax(values, axis=0)).to(tl.int32)
    temperature = tl.load(own + _TEMPERATURE).to(tl.float32)
    if (num_bad > 0) | (largest == float("-inf")):
        token = tl.full([], -1, tl.int32)
    elif temperature > 0:
        floor = tl.load(own + _FLOOR).to(tl.float32)
        limit = tl.minimum((-floor).to(tl.int32, bitcast=True), _LIMIT)
        top_k = tl.load(own + _TOP_K).to(tl.int32)
        top_p = tl.load(own + _TOP_P).to(tl.float32).to(tl.float64)
        limit, quota = _cut(row, size, largest, temperature, limit, top_k, top_p, TILE)
        place = tl.load(own + _PLACE)
        token = _draw(row, size, largest, temperature, limit, quota, place, token, TILE)
    tl.store(picked + request, token)


def pick(logits: Tensor, settings: Tensor) -> Tensor:
    """Pick a token per row.

    Args:
        logits: minus infinity where a token is ruled out.
        settings: of each row: temperature, 0 takes the most likely token, of equal ones the first; floor, at
            most 0, by how much a token's logit over temperature may be below the largest; place, strictly
            between 0 and 1, of the cumulative distribution in vocabulary order; top_k, 0 keeps all; top_p.
    Shapes:
        logits [B, V] float32, contiguous; settings [B, NUM_SETTINGS] float64, contiguous

    Returns:
        Token ids, [B] int32; -1 for a row that has a NaN, plus infinity, or nothing but minus infinity.
    """
    picked = torch.empty(logits.shape[0], dtype=torch.int32, device=logits.device)
    _pick_kernel[(logits.shape[0],)](
        logits, settings, picked, logits.shape[1], NUM_SETTINGS=NUM_SETTINGS, TILE=_TILE, num_warps=8
    )
    return picked
