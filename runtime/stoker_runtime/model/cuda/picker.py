"""Tokens picked in one launch, where nobody wants top_k or top_p."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stoker_runtime.core.step import ScheduledRequest
from stoker_runtime.messages import SamplingParams
from stoker_runtime.model.cuda.pick import pick
from stoker_runtime.model.picker import TorchPicker, is_drawn, place, rows_where


class CudaPicker(TorchPicker):
    """A Picker for logits on a GPU; see picker.Picker. Rows with top_k or top_p take PyTorch's operators."""

    def pick(self, logits: Tensor, requests: Sequence[ScheduledRequest]) -> list[int]:
        """See picker.Picker."""
        cut = rows_where(requests, _is_cut)
        if len(cut) == len(requests):
            return super().pick(logits, requests)
        is_finite = logits.amax(dim=-1).isfinite()
        found = torch.where(is_finite, self._picked(logits, requests), -1)
        token_ids: list[int] = found.tolist()
        if cut:
            chosen = super().pick(logits[cut], [requests[row] for row in cut])
            for row, token_id in zip(cut, chosen, strict=True):
                token_ids[row] = token_id
        return token_ids

    def _picked(self, logits: Tensor, requests: Sequence[ScheduledRequest]) -> Tensor:
        """Pick all rows' tokens as if nobody had top_k or top_p: [B, V] -> [B] int32."""
        settings = torch.tensor([_settings(request) for request in requests], dtype=torch.float64)
        settings = settings.to(logits.device)
        temperatures, floors = (settings[:, column].float() for column in (0, 1))
        return pick(logits, temperatures, floors, settings[:, 2].contiguous())


def _is_cut(sampling: SamplingParams) -> bool:
    return is_drawn(sampling) and (sampling.top_k > 0 or sampling.top_p < 1.0)


def _settings(request: ScheduledRequest) -> tuple[float, float, float]:
    """Return temperature, floor and place, as pick.pick takes them."""
    sampling = request.sampling
    floor = math.log(sampling.min_p) if sampling.min_p > 0 else -math.inf
    return (sampling.temperature, floor, place(request)) if is_drawn(sampling) else (0.0, floor, 0.5)
