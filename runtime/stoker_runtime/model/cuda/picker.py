"""Tokens picked in one launch, whatever the requests ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stoker_runtime.core.step import ScheduledRequest
from stoker_runtime.model.cuda.pick import pick
from stoker_runtime.model.picker import MOST_TOP_K, is_drawn, on_device, place, temperature_of


class CudaPicker:
    """A Picker for logits on a GPU; see picker.Picker. Never waits for the device."""

    def are_finite(self, logits: Tensor) -> Tensor:
        """See picker.Picker."""
        return logits.sum(dim=-1).isfinite()

    def pick(self, logits: Tensor, requests: Sequence[ScheduledRequest]) -> Tensor:
        """See picker.Picker."""
        settings = on_device([_settings(request) for request in requests], torch.float64, logits.device)
        return pick(logits, settings)


def _settings(request: ScheduledRequest) -> tuple[float, float, float, int, float]:
    """Return what pick.pick takes."""
    sampling = request.sampling
    if not is_drawn(sampling):
        return (0.0, 0.0, 0.5, 0, 1.0)
    floor = math.log(sampling.min_p) if sampling.min_p > 0 else -math.inf
    top_k = min(max(sampling.top_k, 0), MOST_TOP_K)
    return (temperature_of(sampling), floor, place(request), top_k, sampling.top_p)
