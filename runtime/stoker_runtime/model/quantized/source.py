"""A checkpoint with quantized weights as a WeightSource: dequantized into place, or handed out as it is."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from torch import Tensor

from stoker_runtime.model.architecture import Fp8Storage, Storage
from stoker_runtime.model.checkpoint.weights import SafetensorsSource
from stoker_runtime.model.quantized.layouts import stored_weight
from stoker_runtime.model.quantized.weight import QuantizedWeight

_INTEGER_PARTS = ("qweight", "qzeros", "scales", "g_idx")
# input_scale is for activations whose range somebody fixed; here they find their own, if they are rounded.
_FP8_PARTS = ("weight", "weight_scale", "weight_scale_inv", "input_scale")


class QuantizedSource:
    """Tensors of a safetensors directory, modules with quantized weights under the names of plain ones.

    Args:
        files: where the tensors are; opened and closed with this source.
        storage: how they are quantized.
    """

    def __init__(self, files: SafetensorsSource, storage: Storage) -> None:
        self._files = files
        self._storage = storage
        self._parts = _FP8_PARTS if isinstance(storage, Fp8Storage) else _INTEGER_PARTS
        self._modules: frozenset[str] = frozenset()
        self._names: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        self._files.__enter__()
        self._modules = frozenset(self._quantized_modules())
        hidden = {f"{module}.{part}" for module in self._modules for part in self._parts}
        # AutoGPTQ gives every module a bias, of zeros where the model has none.
        biases = {f"{module}.bias" for module in self._modules} & self._files.names
        hidden |= {name for name in biases if not self._files.read(name).any()}
        self._names = (self._files.names - hidden) | {f"{module}.weight" for module in self._modules}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def _quantized_modules(self) -> set[str]:
        if isinstance(self._storage, Fp8Storage):
            weights = {name for name in self._files.names if name.endswith(".weight")}
            return {name.removesuffix(".weight") for name in weights if self._files.is_fp8(name)}
        names = (name for name in self._files.names if name.endswith(".qweight"))
        return {name.removesuffix(".qweight") for name in names}

    @property
    def names(self) -> frozenset[str]:
        """Every tensor that a model without quantization would have."""
        return self._names

    def copy_into(self, name: str, destination: Tensor) -> None:
        """See WeightSource.copy_into."""
        module, _, part = name.rpartition(".")
        if part != "weight" or module not in self._modules:
            self._files.copy_into(name, destination)
            return
        outputs, inputs = destination.shape
        weight = self.quantized(module, (outputs, inputs))
        assert weight is not None, "the module is among those with quantized weights"
        weight.dequantize_into(destination)

    def quantized(self, module: str, shape: tuple[int, int]) -> QuantizedWeight | None:
        """Return a module's weight as it is stored, on the CPU; None where it is plain.

        Args:
            module: its name, without `.weight`.
            shape: outputs and inputs.

        Raises:
            ModelError: its tensors do not fit together.
        """
        if module not in self._modules:
            return None
        names = {part: f"{module}.{part}" for part in self._parts}
        tensors: Mapping[str, Tensor] = {
            part: self._files.read(name) for part, name in names.items() if name in self._files.names
        }
        return stored_weight(self._storage, module, tensors, shape)
