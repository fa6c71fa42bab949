"""The 8-bit floating-point format of weights and KV caches: four bits of exponent, three of fraction."""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max  # 448


def to_fp8(values: Tensor) -> Tensor:
    """Round to the nearest, ties to even; what is larger becomes 448, and NaN stays NaN."""
    return values.clamp(-FP8_MAX, FP8_MAX).to(FP8)
