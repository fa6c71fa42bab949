"""Fills in token ids that only the device knows yet."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 256


@triton.jit(do_not_specialize=["count"])  # or a step with another number of tokens compiles anew
def _feed_kernel(token_ids, sampled, out, count, TILE: tl.constexpr):
    index = tl.program_id(0) * TILE + tl.arange(0, TILE)
    mask = index < count
    token = tl.load(token_ids + index, mask=mask, other=0)
    found = tl.load(sampled + (-1 - token), mask=mask & (token < 0), other=0)
    # A row without a token has -1, and what is computed of it nobody asks for.
    tl.store(out + index, tl.where(token < 0, tl.maximum(found, 0), token), mask=mask)


def feed(token_ids: Tensor, sampled: Tensor) -> Tensor:
    """Return token ids with those in place that the step before has sampled.

    Args:
        token_ids: -1 - i stands for the one that was sampled as its i-th, see core.step.sampled_before.
        sampled: what it sampled; -1 where it could not, which is fed as token 0.
    Shapes:
        token_ids [T] int32, sampled [>= samples of the step before] int32 -> [T] int32
    """
    out = torch.empty_like(token_ids)
    count = token_ids.shape[0]
    _feed_kernel[(triton.cdiv(count, _TILE),)](token_ids, sampled, out, count, TILE=_TILE, num_warps=4)
    return out
