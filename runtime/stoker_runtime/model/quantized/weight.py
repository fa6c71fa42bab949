"""Quantized weights in the one form that products read, whatever checkpoint they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stoker_runtime.model.fp8 import FP8, FP8_MAX, to_fp8

_CHUNK_VALUES = 1 << 22  # dequantized at a time, so that the float32 copy stays small


@dataclass(frozen=True, slots=True)
class IntWeight:
    """weight[n, order[k]] = (code[k, n] - zeros[g, n]) * scales[g, n], with g = k // group_size.

    Codes lie in words of 32 bits, the first of consecutive inputs in the lowest bits.

    Args:
        words: codes.
        zeros: zero points.
        scales: as the checkpoint stores them.
        bits: of a code, 4 or 8.
        group_size: inputs that share a scale and a zero point; the last group may have fewer.
        order: which input each code belongs to; None for their own order.
    Shapes:
        words [in * bits / 32, out] int32, zeros [groups, out] uint8, scales [groups, out], order [in] int64
    """

    words: Tensor
    zeros: Tensor
    scales: Tensor
    bits: int
    group_size: int
    order: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.words.shape[1], self.words.shape[0] * (32 // self.bits)

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        order = 0 if self.order is None else self.order.nbytes
        return self.words.nbytes + self.zeros.nbytes + self.scales.nbytes + order

    def to(self, device: torch.device) -> IntWeight:
        """Return it on a device."""
        order = None if self.order is None else self.order.to(device)
        words, zeros, scales = (tensor.to(device) for tensor in (self.words, self.zeros, self.scales))
        return IntWeight(words, zeros, scales, self.bits, self.group_size, order)

    def dequantize_into(self, destination: Tensor) -> None:
        """Write what it stands for: [out, in], converted to the destination's dtype and device."""
        outputs, inputs = self.shape
        per_word = 32 // self.bits
        step = max(1, _CHUNK_VALUES // (outputs * per_word)) * per_word
        for first in range(0, inputs, step):
            end = min(inputs, first + step)
            codes = unpacked(self.words[first // per_word : end // per_word], self.bits, dim=0)
            groups = torch.arange(first, end, device=codes.device) // self.group_size
            values = (codes - self.zeros[groups].int()).float() * self.scales[groups].float()
            if self.order is None:
                destination[:, first:end].copy_(values.T)
            else:
                places = self.order[first:end].to(destination.device)
                destination.index_copy_(1, places, values.T.to(destination))


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """weight[n, k] = codes[n, k] * scales[k // group_size, n].

    Args:
        codes: numbers.
        scales: of groups of inputs.
        group_size: inputs that share a scale.
        rounds_inputs: what it is multiplied with may be rounded to fp8, too.
    Shapes:
        codes [out, in] float8_e4m3fn, scales [groups, out] float32
    """

    codes: Tensor
    scales: Tensor
    group_size: int
    rounds_inputs: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        return self.codes.nbytes + self.scales.nbytes

    def to(self, device: torch.device) -> Fp8Weight:
        """Return it on a device."""
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device))

    def dequantize_into(self, destination: Tensor) -> None:
        """Write what it stands for: [out, in], converted to the destination's dtype and device."""
        outputs, inputs = self.shape
        groups = torch.arange(inputs, device=self.scales.device) // self.group_size
        step = max(1, _CHUNK_VALUES // inputs)
        for first in range(0, outputs, step):
            rows = slice(first, first + step)
            destination[rows].copy_(self.codes[rows].float() * self.scales[groups, rows].T)


QuantizedWeight = IntWeight | Fp8Weight


def stacked(weights: Sequence[QuantizedWeight]) -> tuple[QuantizedWeight, ...]:
    """Stack weights of the same inputs by output row; as they are, where their groups or orders differ."""
    first = weights[0]
    if isinstance(first, Fp8Weight):
        kind = (first.group_size, first.rounds_inputs)
        same = [w for w in weights if isinstance(w, Fp8Weight) and (w.group_size, w.rounds_inputs) == kind]
        if len(same) == len(weights):
            codes = torch.cat([w.codes.view(torch.uint8) for w in same]).view(FP8)
            return (replace(first, codes=codes, scales=torch.cat([w.scales for w in same], dim=1)),)
        return tuple(weights)
    ints = [w for w in weights if isinstance(w, IntWeight) and _is_alike(w, first)]
    if len(ints) < len(weights):
        return tuple(weights)
    words, zeros, scales = (
        torch.cat(list(parts), dim=1)
        for parts in zip(*((w.words, w.zeros, w.scales) for w in ints), strict=True)
    )
    return (replace(first, words=words, zeros=zeros, scales=scales),)


def _is_alike(one: IntWeight, other: IntWeight) -> bool:
    is_ordered = one.order is not None
    if (one.bits, one.group_size, is_ordered) != (other.bits, other.group_size, other.order is not None):
        return False
    return one.order is None or other.order is None or torch.equal(one.order, other.order)


def fp8_rounded(weight: Tensor) -> Fp8Weight:
    """Round a weight [out, in] to float8_e4m3fn with a scale for each output, its largest value over 448."""
    codes = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    scales = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    step = max(1, _CHUNK_VALUES // weight.shape[1])
    for first in range(0, weight.shape[0], step):
        rows = slice(first, first + step)
        part = weight[rows].float()
        scale = part.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / FP8_MAX
        scales[rows] = scale
        codes[rows] = to_fp8(part / scale.unsqueeze(1))
    return Fp8Weight(codes, scales.unsqueeze(0), weight.shape[1], rounds_inputs=True)


def unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """Codes out of words of 32 bits, lowest bits first: int32, 32 / bits times as long along `dim`."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    shape = [1] * (words.dim() + 1)
    shape[dim + 1] = len(shifts)
    codes = (words.unsqueeze(dim + 1) >> shifts.view(shape)) & ((1 << bits) - 1)
    return codes.flatten(dim, dim + 1)


def packed_words(codes: Tensor, bits: int) -> Tensor:
    """The opposite along the first axis: [n, ...] -> [n * bits / 32, ...] int32."""
    per_word = 32 // bits
    parts = codes.int().view(-1, per_word, *codes.shape[1:])
    words = torch.zeros_like(parts[:, 0])
    for place in range(per_word):
        words |= parts[:, place] << (bits * place)
    return words
