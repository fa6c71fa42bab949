"""Rotary position embedding: the table of angles and how it turns query and key heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stoker_runtime.model.architecture import (
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeSettings,
    YarnScaling,
)


class Rope:
    """Cosines and sines of every position, in the dtype the heads have.

    Shapes:
        cos, sin [max_position, R] for the R rotated elements; the sine's first half is negated, see rotate.
    """

    def __init__(
        self,
        settings: RopeSettings,
        max_position: int,
        dtype: torch.dtype,
        device: torch.device,
        frequency_divisors: Tensor | None = None,
    ) -> None:
        frequencies = inverse_frequencies(settings)
        if frequency_divisors is not None:
            frequencies = frequencies / frequency_divisors
        angles = torch.outer(torch.arange(max_position).float(), frequencies)  # [P, R/2] float32
        cos, sin = angles.cos() * settings.attention_factor, angles.sin() * settings.attention_factor
        self.cos = torch.cat([cos, cos], dim=-1).to(device, dtype)
        self.sin = torch.cat([-sin, sin], dim=-1).to(device, dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines for a step: positions [T] -> two [T, 1, R]."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R elements of each head by its position's angles.

    The pair of element i is element i + R/2; a roll by R/2 swaps the halves, and the sign that rotation needs
    is in the sine table.

    Shapes:
        heads [T, H, D], cos and sin [T, 1, R] -> [T, H, D]
    """
    size = cos.shape[-1]
    turned = heads[..., :size]
    turned = torch.addcmul(turned * cos, turned.roll(size // 2, dims=-1), sin)
    return turned if size == heads.shape[-1] else torch.cat([turned, heads[..., size:]], dim=-1)


def inverse_frequencies(settings: RopeSettings) -> Tensor:
    """Return the rotation per position of each pair, [R/2] float32, scaled as the settings ask."""
    exponents = torch.arange(0, settings.rotary_dim, 2).float() / settings.rotary_dim
    frequencies = 1.0 / (settings.theta**exponents)
    match settings.scaling:
        case None:
            return frequencies
        case LinearScaling(factor):
            return frequencies / factor
        case Llama3Scaling():
            return _llama3(frequencies, settings.scaling)
        case YarnScaling():
            return _yarn(frequencies, settings, settings.scaling)
        case LongScaling(divisors):
            return 1.0 / (torch.tensor(divisors) * settings.theta**exponents)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Scale long wavelengths down.

    Source: Llama 3.1's reference code (apply_scaling in its model.py).
    """
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position / wavelengths  # in the original context
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def _yarn(frequencies: Tensor, settings: RopeSettings, scaling: YarnScaling) -> Tensor:
    """Divide the frequencies that turn little in the original context, keep those that turn much.

    Source: Peng et al., YaRN: Efficient Context Window Extension of Large Language Models, 2023, section 3.
    """

    def place(turns: float) -> float:  # among the pairs, of the one that turns so often
        wavelength = scaling.original_max_position / (turns * 2 * math.pi)
        return settings.rotary_dim * math.log(wavelength) / (2 * math.log(settings.theta))

    first, last = place(scaling.beta_fast), place(scaling.beta_slow)
    if scaling.truncates:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, settings.rotary_dim - 1)
    width = last - first or 0.001
    blend = ((torch.arange(len(frequencies)).float() - first) / width).clamp(0.0, 1.0)
    return frequencies / scaling.factor * blend + frequencies * (1 - blend)
