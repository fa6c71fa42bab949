"""Puts a GGUF file's tensors together without dequantizing those that stay in their blocks."""

from __future__ import annotations

import torch

from stoker_runtime.model.architecture import Architecture
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.checkpoint.blocks import BlockLinear, BlockTensor
from stoker_runtime.model.checkpoint.weights import GgufSource
from stoker_runtime.model.linear import Linear


class BlockAssembly(Assembly):
    """An Assembly whose products are BlockLinear where all their tensors are of KEPT_TYPES.

    Experts are products of their own: views of the file's stacks, which are read when they are packed.
    """

    def __init__(
        self, architecture: Architecture, source: GgufSource, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(architecture, source, dtype, device)
        self._file = source

    @property
    def _stacks_experts(self) -> bool:
        return False

    def _product(self, parts: dict[str, int], num_inputs: int, bias: bool = False) -> Linear | BlockLinear:
        found: list[BlockTensor] = []
        for module, rows in parts.items():
            tensor = self._file.blocks(f"{module}.weight", (rows, num_inputs))
            if tensor is None:
                return super()._product(parts, num_inputs, bias)
            found.append(tensor)
        self._used.update(f"{module}.weight" for module in parts)
        self.num_bytes += sum(tensor.blocks.nbytes for tensor in found)
        return BlockLinear(tuple(found), self._rows("bias", parts) if bias else None)
