"""Whether the kernels can compute a model here. Imports Triton only where it is there."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec

import torch

from stoker_runtime.model.architecture import Architecture

MAX_GROUP = 32  # query heads per KV head: the rows of the smallest tile
MAX_HEAD_DIM = 256

logger = logging.getLogger(__name__)


def is_usable(
    architecture: Architecture,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Tell whether the kernels compute a model rightly on a CUDA device; a line in the log says why not."""
    reason = _why_not(architecture, block_size, dtype, kv_dtype, device)
    if reason is not None:
        logger.warning("steps are computed by PyTorch's operators, which is slower: %s", reason)
    return reason is None


def _why_not(
    architecture: Architecture,
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    group = architecture.num_heads // architecture.num_kv_heads
    if group > MAX_GROUP or architecture.head_dim > MAX_HEAD_DIM:
        return f"the kernels have no tiles for {group} heads of {architecture.head_dim} to a KV head"

    def check() -> str | None:
        from stoker_runtime.model.cuda.check import deviation

        return deviation(architecture, block_size, dtype, kv_dtype, device)

    return _why_wrong(check, device)


def computes_quantized(architecture: Architecture, dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether the kernels multiply quantized weights rightly on a CUDA device; the log says why not."""

    def check() -> str | None:
        from stoker_runtime.model.cuda.check import product_deviation

        return product_deviation(dtype, device, architecture.experts)

    reason = _why_wrong(check, device)
    if reason is not None:
        logger.warning("no weight stays quantized: %s", reason)
    return reason is None


def _why_wrong(check: Callable[[], str | None], device: torch.device) -> str | None:
    """What a check of kernels finds, or why it cannot run."""
    if find_spec("triton") is None:
        return "Triton is not installed; torch's builds for CUDA bring it along"
    if device.type == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 makes Triton interpret kernels on the CPU"
    try:
        found = check()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no C compiler, too little shared memory, an old card: each has its own type
        return f"Triton's kernels do not run here: {type(error).__name__}: {error}"
    return None if found is None else f"Triton's kernels compute wrongly on this device: {found}"
