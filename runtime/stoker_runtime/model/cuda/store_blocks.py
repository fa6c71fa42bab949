"""Stores what block tables on the device have gained."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_TILE = 256


@triton.jit(do_not_specialize=["count"])  # or a step that adds another number of blocks compiles anew
def _store_blocks_kernel(blocks, changes, count, TILE: tl.constexpr):
    index = tl.program_id(0) * TILE + tl.arange(0, TILE)
    mask = index < count
    place = tl.load(changes + 2 * index, mask=mask, other=0)
    tl.store(blocks + place, tl.load(changes + 2 * index + 1, mask=mask, other=0), mask=mask)


def store_blocks(blocks: Tensor, changes: Tensor, count: int) -> None:
    """Store blocks in their places.

    Args:
        blocks: all tables; changed.
        changes: pairs of a place and a block, see BlockTables.changes.
        count: pairs.
    Shapes:
        blocks [rows * max blocks] int32, changes [>= 2 * count] int32
    """
    if count:
        _store_blocks_kernel[(triton.cdiv(count, _TILE),)](blocks, changes, count, TILE=_TILE, num_warps=4)
