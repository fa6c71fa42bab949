"""The KV cache as kernels take it."""

from __future__ import annotations

import torch
from torch import Tensor

from stoker_runtime.model.fp8 import FP8


def as_stored(cache: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return keys and values, fp8 as bytes: Triton has that type on newer devices only."""
    keys, values = cache
    return (keys.view(torch.uint8), values.view(torch.uint8)) if keys.dtype == FP8 else cache
