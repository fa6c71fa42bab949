"""Reads from a GGUF file's metadata how its layers rotate, and over how many tokens that holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import (
    LayerKind,
    LinearScaling,
    RopeScaling,
    RopeSettings,
    YarnScaling,
)
from stoker_runtime.model.config_values import integer, number, unsupported


def layer_kinds(
    values: Mapping[str, Any], name: str, head_dim: int, *, is_sparse: bool
) -> tuple[tuple[LayerKind, ...], int]:
    """Return what each layer is, and how many tokens they attend over at most.

    Args:
        values: the metadata of the architecture, without its name before each key.
        name: of the architecture.
        head_dim: elements of a head.
        is_sparse: the layers are mixtures.

    Raises:
        ModelError: reason InvalidModel or UnsupportedModel.
    """
    theta = number(values, "rope.freq_base", 10000.0)
    scaling = _scaling(values, name, theta)
    longest = integer(values, "context_length")
    if isinstance(scaling, YarnScaling):
        longest = max(longest, int(scaling.original_max_position * scaling.factor))
    kind = LayerKind(RopeSettings(theta, head_dim, scaling), is_sparse=is_sparse)
    return (kind,) * integer(values, "block_count"), longest


def _scaling(values: Mapping[str, Any], name: str, theta: float) -> RopeScaling | None:
    kind = values.get("rope.scaling.type", "linear")  # what a factor is for where nothing says so
    key = "rope.scaling.factor" if "rope.scaling.factor" in values else "rope.scale_linear"
    factor = number(values, key) if values.get(key) else 1.0
    attention_factor = number(values, "rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        return _yarn(values, theta, factor, attention_factor)
    if kind not in ("none", "linear"):
        raise unsupported(f"{name}.rope.scaling.type = {kind!r} (supported: none, linear, yarn)")
    if attention_factor != 1:
        raise unsupported(f"{name}.rope.scaling.attn_factor = {attention_factor} with {kind} rope scaling")
    return LinearScaling(factor) if kind == "linear" and factor != 1 else None


def _yarn(values: Mapping[str, Any], theta: float, factor: float, attention_factor: float) -> YarnScaling:
    if theta <= 1:
        raise ModelError(f"the model's rope.freq_base is {theta}, which yarn rope scaling cannot blend")
    original = integer(values, "rope.scaling.original_context_length", integer(values, "context_length"))
    if original < 1:
        raise ModelError(f"the model's rope.scaling.original_context_length is {original}")
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        beta_fast=number(values, "rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=number(values, "rope.scaling.yarn_beta_slow", 1.0),
        truncates=True,
        attention_factor=attention_factor * (1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0),
    )
