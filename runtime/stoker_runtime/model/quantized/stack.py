"""Quantized weights of a mixture's experts behind each other, so that one launch may read any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stoker_runtime.model.fp8 import FP8
from stoker_runtime.model.quantized.weight import Fp8Weight, IntWeight, QuantizedWeight


@dataclass(frozen=True, slots=True)
class QuantizedStack:
    """What weights of one kind have, with an axis for the weights in front; see IntWeight and Fp8Weight.

    Args:
        codes: IntWeight's words or Fp8Weight's codes as bytes.
        zeros: zero points; None where codes are fp8.
        scales: of groups.
        order: of the inputs, if it is not their own.
        bits: of a code; 0 where codes are fp8.
        group_size: inputs that share a scale.
    Shapes:
        codes [N, in * bits / 32, out] int32 or [N, out, in] uint8; zeros, scales [N, groups, out];
        order [N, in] int64
    """

    codes: Tensor
    zeros: Tensor | None
    scales: Tensor
    order: Tensor | None
    bits: int
    group_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Weights, outputs and inputs."""
        count, first, second = self.codes.shape
        return (count, second, first * (32 // self.bits)) if self.bits else (count, first, second)

    def like(self, weights: Sequence[QuantizedWeight]) -> list[QuantizedWeight]:
        """Return the weights that it was made of as views of it."""
        views: list[QuantizedWeight] = []
        for index, weight in enumerate(weights):
            codes, scales = self.codes[index], self.scales[index]
            if isinstance(weight, Fp8Weight):
                views.append(replace(weight, codes=codes.view(FP8), scales=scales))
            else:
                assert self.zeros is not None
                order = None if self.order is None else self.order[index]
                views.append(
                    replace(weight, words=codes, zeros=self.zeros[index], scales=scales, order=order)
                )
        return views


def stack(weights: Sequence[QuantizedWeight]) -> QuantizedStack | None:
    """Copy weights behind each other; None where they differ in more than their numbers."""
    if len({_kind(weight) for weight in weights}) != 1:
        return None
    scales = torch.stack([weight.scales for weight in weights])
    ints = [weight for weight in weights if isinstance(weight, IntWeight)]
    group_size = weights[0].group_size
    if not ints:
        codes = torch.stack(
            [weight.codes.view(torch.uint8) for weight in weights if isinstance(weight, Fp8Weight)]
        )
        return QuantizedStack(codes, None, scales, None, 0, group_size)
    orders = [weight.order for weight in ints if weight.order is not None]
    return QuantizedStack(
        torch.stack([weight.words for weight in ints]),
        torch.stack([weight.zeros for weight in ints]),
        scales,
        torch.stack(orders) if orders else None,
        ints[0].bits,
        group_size,
    )


def _kind(weight: QuantizedWeight) -> tuple[object, ...]:
    kind = (weight.shape, weight.group_size, weight.scales.dtype)
    return (*kind, weight.bits, weight.order is None) if isinstance(weight, IntWeight) else kind
