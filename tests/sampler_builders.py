"""Rows for the sampler's tests, and the pickers that a machine has."""

from __future__ import annotations

import functools
import os
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from runtime_builders import make_sampling
from torch import Tensor

from stoker_runtime.core.step import SampledToken, ScheduledRequest
from stoker_runtime.model import sampler
from stoker_runtime.model.native.library import find_kernels
from stoker_runtime.model.native.picker import NativePicker
from stoker_runtime.model.picker import Picker, TorchPicker


@functools.cache
def cpu_pickers() -> dict[str, Picker]:
    """The pickers for a CPU."""
    kernels = find_kernels(torch.float32, 2)
    return {"pytorch": TorchPicker()} | ({"kernels": NativePicker(kernels)} if kernels else {})


@functools.cache
def all_pickers() -> dict[str, Picker]:
    """The same, and the one for a GPU where Triton's interpreter runs it."""
    if "TRITON_INTERPRET" not in os.environ:
        return cpu_pickers()
    from stoker_runtime.model.cuda.picker import CudaPicker  # imports Triton, which is not everywhere

    return {**cpu_pickers(), "interpreter": CudaPicker()}


def make_row(
    name: str = "a",
    *,
    seed: int = 0,
    position: int = 1,
    prompt: list[int] | None = None,
    output: list[int] | None = None,
    masked: tuple[int, ...] = (),
    **sampling: Any,
) -> ScheduledRequest:
    """A request that samples the token at `position`."""
    allowed = sampling.get("allowed_token_ids")
    return ScheduledRequest(
        request_id=name,
        token_ids=[0],
        num_computed_tokens=position - 1,
        block_ids=[0],
        samples=True,
        sampling=make_sampling(**sampling),
        seed=seed,
        prompt_token_ids=prompt or [0],
        output_token_ids=output or [],
        masked_token_ids=masked,
        allowed_token_ids=None if allowed is None else array("q", allowed),
    )


def sample_with(picker: Picker, logits: Tensor, requests: Sequence[ScheduledRequest]) -> list[SampledToken]:
    """Sample rows; numpy, in which the interpreter computes, warns of infinity minus a number."""
    with np.errstate(over="ignore", invalid="ignore"):
        return sampler.sample(logits, requests, picker).tokens()
