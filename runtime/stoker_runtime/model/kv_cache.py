"""The paged KV cache: one tensor, addressed by slot = block id * block size + offset in the block."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stoker_runtime.model.architecture import Architecture
from stoker_runtime.model.fp8 import FP8

_NUMPY_DTYPES = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: np.int16,
    FP8: np.uint8,
}


def block_bytes(architecture: Architecture, block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes of one block over all layers, keys and values."""
    values = architecture.num_layers * 2 * block_size * architecture.num_kv_heads * architecture.head_dim
    return values * dtype.itemsize


class KVCache:
    """Keys and values of every computed token.

    Args:
        architecture: of the model.
        num_blocks: how many there are.
        block_size: tokens in each.
        dtype: of the activations, or FP8, whose scale is 1: keys and values lie well within its range.
        device: where it is.
    Shapes:
        storage [L, 2, N, S, Hkv, D]
    """

    def __init__(
        self,
        architecture: Architecture,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        heads = (architecture.num_kv_heads, architecture.head_dim)
        shape = (architecture.num_layers, 2, num_blocks, block_size, *heads)
        if device.type == "cpu":
            # Numpy's zeros come from untouched pages, so the process grows only as far as blocks are used.
            self.storage = torch.from_numpy(np.zeros(shape, _NUMPY_DTYPES[dtype])).view(dtype)
        else:
            self.storage = torch.zeros(shape, dtype=dtype, device=device)
        by_slot = self.storage.view(architecture.num_layers, 2, num_blocks * block_size, *heads)
        self._layers = [(layer[0], layer[1]) for layer in by_slot]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one layer's keys and values by slot, each [N * S, Hkv, D]."""
        return self._layers[index]

    @property
    def num_bytes(self) -> int:
        """Bytes reserved."""
        return self.storage.nbytes
