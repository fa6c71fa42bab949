"""Products with quantized weights in PyTorch's operators: what the kernels are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.model.quantized.weight import QuantizedWeight


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """x @ weight.T + bias, the weight dequantized for each product.

    Args:
        weights: one after the other by output row; they read the same inputs.
        bias: of all of them, if there is one.
    Shapes:
        weights [out, in] each, bias [sum of out]; call: [T, in] -> [T, sum of out]
    """

    weights: tuple[QuantizedWeight, ...]
    bias: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows @ weight.T + bias."""
        parts = []
        for weight in self.weights:
            plain = torch.empty(weight.shape, dtype=rows.dtype, device=rows.device)
            weight.dequantize_into(plain)
            parts.append(F.linear(rows, plain))
        product = torch.cat(parts, dim=-1)
        return product if self.bias is None else product + self.bias
