"""Puts a GGUF file's tensors together without dequantizing those that stay in their blocks."""

from __future__ import annotations

from collections.abc import Collection

import torch

from stoker_runtime.model.architecture import Architecture
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.checkpoint.blocks import KEPT_TYPES, BlockLinear, BlockTensor
from stoker_runtime.model.checkpoint.weights import GgufSource
from stoker_runtime.model.linear import Linear, Product


class BlockAssembly(Assembly):
    """An Assembly whose products are BlockLinear where all their tensors are blocks.

    In the layers, blocks may be of any type: those that no kernel multiplies with are rounded when they are
    packed. Embeddings and the head are BlockLinear only of KEPT_TYPES. Experts are products of their own:
    views of the file's stacks, which are read when they are packed.
    """

    def __init__(
        self, architecture: Architecture, source: GgufSource, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(architecture, source, dtype, device)
        self._file = source

    @property
    def _stacks_experts(self) -> bool:
        return False

    def _linear(self, prefix: str, modules: dict[str, int], num_inputs: int, bias: bool = False) -> Product:
        parts = {f"{prefix}.{name}": rows for name, rows in modules.items()}
        return self._blocks(parts, num_inputs, bias) or super()._linear(prefix, modules, num_inputs, bias)

    def _product(self, parts: dict[str, int], num_inputs: int, bias: bool = False) -> Linear | BlockLinear:
        found = self._blocks(parts, num_inputs, bias, KEPT_TYPES)
        return found or super()._product(parts, num_inputs, bias)

    def _blocks(
        self, parts: dict[str, int], num_inputs: int, bias: bool, types: Collection[int] | None = None
    ) -> BlockLinear | None:
        """Return the stored blocks of some modules; None where one has none, or of another type."""
        found: list[BlockTensor] = []
        for module, rows in parts.items():
            tensor = self._file.blocks(f"{module}.weight", (rows, num_inputs))
            if tensor is None or (types is not None and tensor.type_id not in types):
                return None
            found.append(tensor)
        self._used.update(f"{module}.weight" for module in parts)
        self.num_bytes += sum(tensor.blocks.nbytes for tensor in found)
        return BlockLinear(tuple(found), self._rows("bias", parts) if bias else None)
