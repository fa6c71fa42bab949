"""Weights that stay in the blocks of a GGUF file, for whoever multiplies with blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.model.checkpoint.dequantize import BlockFormat, block_format

KEPT_TYPES = frozenset({2, 3, 8, 12, 14})  # GGML's numbers of what csrc/gguf_types.h multiplies with


@dataclass(frozen=True, slots=True)
class BlockTensor:
    """Rows of GGML blocks.

    Args:
        type_id: GGML's number of the blocks' type; kernels multiply with KEPT_TYPES only.
        blocks: the file's bytes.
    Shapes:
        blocks [rows, blocks per row * bytes per block] uint8
    """

    type_id: int
    blocks: Tensor

    @property
    def form(self) -> BlockFormat:
        """How the type stores values."""
        form = block_format(self.type_id)
        assert form is not None, "a tensor of a type that nothing reads is refused"
        return form

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the values."""
        num_rows, num_bytes = self.blocks.shape
        return num_rows, num_bytes // self.form.num_bytes * self.form.num_values

    def values(self) -> Tensor:
        """Return the values, float32 [rows, columns]."""
        form = self.form
        return form.decode(self.blocks.reshape(-1, form.num_bytes)).view(self.shape)


@dataclass(frozen=True, slots=True)
class BlockLinear:
    """x @ weight.T + bias, where the weight's parts lie one below the other.

    Args:
        parts: the file's tensors.
        bias: if there is one.
    Shapes:
        parts [out of each, in], bias [out]; call: [T, in] -> [T, out]
    """

    parts: tuple[BlockTensor, ...]
    bias: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows @ weight.T + bias: what kernels have to agree with, and slow."""
        return F.linear(rows, self.weight().to(rows.dtype), self.bias)

    def weight(self) -> Tensor:
        """Return the values, float32 [out, in]."""
        return torch.cat([part.values() for part in self.parts])

    def joined(self) -> BlockLinear:
        """Return the same in as few parts as possible: neighbours of one type are one."""
        groups = groupby(self.parts, attrgetter("type_id"))
        return replace(self, parts=tuple(_joined(type_id, list(parts)) for type_id, parts in groups))


def _joined(type_id: int, parts: Sequence[BlockTensor]) -> BlockTensor:
    return parts[0] if len(parts) == 1 else BlockTensor(type_id, torch.cat([part.blocks for part in parts]))
