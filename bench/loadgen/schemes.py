"""Ways to store weights and KV caches in fewer bits, computed by PyTorch's operators in float32 on any CPU.

Weights go through the very layouts of checkpoints (loadgen.checkpoints) and the runtime's readers of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from loadgen.checkpoints import Awq, Fp8, Gptq, Layout
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.checkpoint.quantization_config import read_storage
from stoker_runtime.model.checkpoint.weights import WeightSource
from stoker_runtime.model.decoder import Decoder
from stoker_runtime.model.fp8 import FP8
from stoker_runtime.model.layer import Layer
from stoker_runtime.model.linear import Product
from stoker_runtime.model.loader import open_model
from stoker_runtime.model.quantized.layouts import stored_weight
from stoker_runtime.model.quantized.weight import QuantizedWeight, fp8_rounded

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scheme:
    """What is stored in fewer bits.

    Args:
        layout: of the weights; None leaves them alone.
        rounds_inputs: activations are rounded to fp8, row by row, before each product of a layer.
        kv_dtype: of the cache.
    """

    layout: Layout | None = None
    rounds_inputs: bool = False
    kv_dtype: torch.dtype = torch.float32


SCHEMES: dict[str, Scheme] = {
    "float32": Scheme(),
    "fp8 weights, a scale for each output": Scheme(Fp8("channel")),
    "fp8 weights, blocks of 128 x 128": Scheme(Fp8("block", is_compressed=False)),
    "fp8 weights and activations": Scheme(Fp8("channel"), rounds_inputs=True),
    "int8, GPTQ's layout, groups of 64": Scheme(Gptq(bits=8, group_size=64, is_symmetric=True)),
    "int4, GPTQ's layout, groups of 64": Scheme(Gptq(bits=4, group_size=64, is_symmetric=True)),
    "int4, AWQ's layout, groups of 64": Scheme(Awq(group_size=64)),
    "fp8 KV cache": Scheme(kv_dtype=FP8),
    "fp8 weights and KV cache": Scheme(Fp8("channel"), kv_dtype=FP8),
}


class RoundedSource:
    """Another source with the weights of the layers' linear modules rounded on their way."""

    def __init__(self, source: WeightSource, layout: Layout) -> None:
        self._source = source
        self._layout = layout
        self._storage = read_storage({"quantization_config": layout.config()})

    def __enter__(self) -> Self:
        self._source.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.__exit__(kind, error, trace)

    @property
    def names(self) -> frozenset[str]:
        """Every tensor of the other source."""
        return self._source.names

    def copy_into(self, name: str, destination: Tensor) -> None:
        """See WeightSource.copy_into."""
        self._source.copy_into(name, destination)
        if name.endswith("_proj.weight"):
            self._rounded(name.removesuffix(".weight"), destination).dequantize_into(destination)

    def _rounded(self, module: str, weight: Tensor) -> QuantizedWeight:
        tensors, shape = self._layout.module(weight), (weight.shape[0], weight.shape[1])
        assert self._storage is not None, "a layout's configuration says how it stores weights"
        return stored_weight(self._storage, module, tensors, shape)


@dataclass(frozen=True)
class InputRounding:
    """A product whose activations are rounded to fp8 before it, as on devices with such products."""

    product: Product

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the product with the rounded rows."""
        rounded = torch.empty_like(rows)
        fp8_rounded(rows).dequantize_into(rounded)
        return self.product(rounded)


class InputRoundingAssembly(Assembly):
    """An assembly whose layers round the activations before their products."""

    def layers(self) -> Iterator[Layer]:
        """See Assembly.layers."""
        for layer in super().layers():
            yield layer.mapped(InputRounding)


def plain_decoder(model: Path, scheme: Scheme, num_positions: int) -> Decoder:
    """Load a GGUF file or a folder of safetensors for PyTorch's operators."""
    architecture, source = open_model(model)
    if scheme.layout is not None:
        source = RoundedSource(source, scheme.layout)
    assembly = InputRoundingAssembly if scheme.rounds_inputs else Assembly
    with source:
        decoder = Decoder(architecture, assembly(architecture, source, torch.float32, CPU))
    decoder.set_max_positions(num_positions)
    return decoder
