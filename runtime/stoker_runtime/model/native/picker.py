"""Tokens picked by the C++ library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stoker_runtime.core.step import ScheduledRequest
from stoker_runtime.model.native import structs
from stoker_runtime.model.native.library import Kernels
from stoker_runtime.model.picker import MOST_TOP_K, is_drawn, place, temperature_of


class NativePicker:
    """A Picker for logits on the CPU; see picker.Picker."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def are_finite(self, logits: Tensor) -> Tensor:
        """See picker.Picker."""
        return torch.tensor(self._kernels.are_finite(logits))

    def pick(self, logits: Tensor, requests: Sequence[ScheduledRequest]) -> Tensor:
        """See picker.Picker."""
        picks = (structs.Pick * len(requests))()
        for pick, request in zip(picks, requests, strict=True):
            sampling = request.sampling
            pick.top_p = sampling.top_p
            pick.min_p = sampling.min_p
            pick.top_k = min(max(sampling.top_k, 0), MOST_TOP_K)
            if is_drawn(sampling):
                pick.temperature = temperature_of(sampling)
                pick.place = place(request)
        return torch.tensor(self._kernels.pick(logits, picks))
