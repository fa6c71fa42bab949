"""GGML's quantized blocks read by the library, which takes a fraction of what PyTorch's operators take."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from stoker_runtime.model.checkpoint.blocks import KEPT_TYPES
from stoker_runtime.model.checkpoint.dequantize import FORMATS
from stoker_runtime.model.native.library import PATH, dequantizer

logger = logging.getLogger(__name__)

_CHECKED_BLOCKS = 3  # of each type


def read_blocks(type_id: int, blocks: Tensor, target: Tensor) -> bool:
    """Read blocks as `dequantize` does, in every bit, where the library can.

    Args:
        type_id: GGML's number of their type.
        blocks: their bytes, one after the other.
        target: gets their values.

    Returns:
        Whether it did: not where there is no library, nor for other types, dtypes and devices.
    """
    if type_id not in KEPT_TYPES or target.device.type != "cpu" or not target.is_contiguous():
        return False
    read = _reader(target.dtype)
    if read is None:
        return False
    read(type_id, blocks, target)
    return True


@cache
def _reader(dtype: torch.dtype) -> Callable[[int, Tensor, Tensor], None] | None:
    """Return what reads blocks into a dtype; None where nothing does, or wrongly."""
    function = dequantizer(dtype)
    if function is None:
        return None

    def read(type_id: int, blocks: Tensor, target: Tensor) -> None:
        num_blocks = blocks.numel() // FORMATS[type_id].num_bytes
        function(type_id, blocks.data_ptr(), num_blocks, target.data_ptr())

    if all(_agrees(read, type_id, dtype) for type_id in KEPT_TYPES):
        return read
    logger.warning("%s reads GGUF blocks wrongly on this CPU; PyTorch's operators take its place", PATH.name)
    return None


def _agrees(read: Callable[[int, Tensor, Tensor], None], type_id: int, dtype: torch.dtype) -> bool:
    """Compare a few blocks with PyTorch's reading of them."""
    form = FORMATS[type_id]
    generator = torch.Generator().manual_seed(type_id)
    blocks = torch.randint(256, (_CHECKED_BLOCKS, form.num_bytes), dtype=torch.uint8, generator=generator)
    values = torch.empty(_CHECKED_BLOCKS, form.num_values, dtype=dtype)
    read(type_id, blocks, values)
    return torch.allclose(values, form.decode(blocks).to(dtype), rtol=0, atol=0, equal_nan=True)
