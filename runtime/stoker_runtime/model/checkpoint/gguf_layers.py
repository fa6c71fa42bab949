"""Reads from a GGUF file's metadata which layers rotate, how, and which attend through a window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import GgufFile, read_floats
from stoker_runtime.model.architecture import (
    LayerKind,
    LinearScaling,
    LongScaling,
    RopeScaling,
    RopeSettings,
    YarnScaling,
)
from stoker_runtime.model.checkpoint.config_values import integer, number, unsupported

LONG_DIVISORS, SHORT_DIVISORS = "rope_factors_long.weight", "rope_factors_short.weight"
# Every so many layers, one has no window: what architectures with windows have where the file is silent.
_WINDOW_PATTERNS = {"gemma2": 2, "gemma3": 6}
# What layers with a window rotate by, where that is another base than the others'.
_LOCAL_THETAS = {"gemma3": 10000.0}
# Every so many layers, one has no rope; no key says so.
_ROPE_INTERVALS = {"smollm3": 4}
_PARTLY_ROTATED = ("phi3",)


def layer_kinds(
    gguf: GgufFile, values: Mapping[str, Any], name: str, head_dim: int, *, is_sparse: bool
) -> tuple[tuple[LayerKind, ...], int]:
    """Return what each layer is, and how many tokens they attend over at most.

    Args:
        gguf: the file, which may hold divisors of frequencies.
        values: its metadata of the architecture, without the name before each key.
        name: of the architecture.
        head_dim: elements of a head.
        is_sparse: the layers are mixtures.

    Raises:
        ModelError: reason InvalidModel or UnsupportedModel.
    """
    rope = _rope(gguf, values, name, head_dim)
    longest = integer(values, "context_length")
    match rope.scaling:
        case YarnScaling(factor, original):
            longest = max(longest, int(original * factor))
        case LongScaling(_, original):  # longer texts have other divisors, and their keys would change
            longest = min(longest, original)
    num_layers = integer(values, "block_count")
    if num_layers > len(gguf.tensors):  # else a header alone could take all memory
        raise ModelError(
            f"the model's block_count is {num_layers}, with {len(gguf.tensors)} tensors in the file"
        )
    slides, size = _slides(values, name, num_layers)
    window = size if size < longest else None
    local = _local_rope(values, name, rope)
    interval = _ROPE_INTERVALS.get(name, num_layers + 1)
    kinds = (
        LayerKind(
            rope=None if (index + 1) % interval == 0 else local if is_sliding else rope,
            window=window if is_sliding else None,
            is_sparse=is_sparse,
        )
        for index, is_sliding in enumerate(slides)
    )
    return tuple(kinds), longest


def _slides(values: Mapping[str, Any], name: str, num_layers: int) -> tuple[list[bool], int]:
    """Which layers a window is for, and its size; architectures without windows never have the key."""
    size = integer(values, "attention.sliding_window", 4096 if name == "gemma2" else 0)
    if size < 0:
        raise ModelError(f"the model's attention.sliding_window is {size}")
    if name not in _WINDOW_PATTERNS:
        return [size > 0] * num_layers, size
    every = integer(values, "attention.sliding_window_pattern", _WINDOW_PATTERNS[name])
    if every < 1:
        raise ModelError(f"the model's attention.sliding_window_pattern is {every}")
    return [size > 0 and (index + 1) % every != 0 for index in range(num_layers)], size


def _rope(gguf: GgufFile, values: Mapping[str, Any], name: str, head_dim: int) -> RopeSettings:
    rotary_dim = integer(values, "rope.dimension_count", head_dim)
    if rotary_dim != head_dim and name not in _PARTLY_ROTATED:
        raise unsupported(f"{name}.rope.dimension_count = {rotary_dim} with a head size of {head_dim}")
    if name == "granite" and values.get("rope.scaling.finetuned") is False:
        raise unsupported(f"{name}.rope.scaling.finetuned = False, no rotation at all,")
    theta = number(values, "rope.freq_base", 10000.0)
    if name == "phi3" and SHORT_DIVISORS in gguf.tensors:
        return RopeSettings(theta, rotary_dim, _long_scaling(gguf, values, rotary_dim))
    return RopeSettings(theta, rotary_dim, _scaling(values, name, theta))


def _local_rope(values: Mapping[str, Any], name: str, rope: RopeSettings) -> RopeSettings:
    if name not in _WINDOW_PATTERNS:
        return rope
    theta = number(values, "rope.freq_base_swa", _LOCAL_THETAS.get(name, rope.theta))
    return RopeSettings(theta, rope.rotary_dim, None if name in _LOCAL_THETAS else rope.scaling)


def _long_scaling(gguf: GgufFile, values: Mapping[str, Any], rotary_dim: int) -> LongScaling:
    kind = values.get("rope.scaling.type", "longrope")
    if kind not in ("none", "longrope") or values.get("rope.scaling.factor"):
        raise unsupported(f"{kind} rope scaling beside {SHORT_DIVISORS}")
    for name in (SHORT_DIVISORS, LONG_DIVISORS):
        if name not in gguf.tensors or gguf.tensors[name].shape != (rotary_dim // 2,):
            raise ModelError(f"longrope scaling needs {rotary_dim // 2} numbers in the tensor {name}")
    divisors = read_floats(gguf, SHORT_DIVISORS)
    if not all(0 < divisor < math.inf for divisor in divisors):
        raise ModelError(f"the tensor {SHORT_DIVISORS} holds what no frequency can be divided by")
    return LongScaling(
        divisors=divisors,
        original_max_position=_original(values),
        attention_factor=number(values, "rope.scaling.attn_factor", 1.0),
    )


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
    return YarnScaling(
        factor=factor,
        original_max_position=_original(values),
        beta_fast=number(values, "rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=number(values, "rope.scaling.yarn_beta_slow", 1.0),
        truncates=True,
        attention_factor=attention_factor * (1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0),
    )


def _original(values: Mapping[str, Any]) -> int:
    """Tokens of the context before it was extended."""
    original = integer(values, "rope.scaling.original_context_length", integer(values, "context_length"))
    if original < 1:
        raise ModelError(f"the model's rope.scaling.original_context_length is {original}")
    return original
