"""Reads from a config.json how queries and keys are rotated, and over how many tokens that holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import (
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeScaling,
    RopeSettings,
    YarnScaling,
)
from stoker_runtime.model.checkpoint.config_values import flag, integer, mapping, number, unsupported

_SUPPORTED = "default, linear, llama3, dynamic, yarn, longrope"
# How Phi's older files spell longrope.
_PHI_SPELLINGS = {"su": "longrope", "yarn": "longrope"}


def rope_settings(
    rope: Mapping[str, Any],
    theta_key: str,
    default_theta: float,
    config: Mapping[str, Any],
    head_dim: int,
    *,
    is_phi: bool,
) -> RopeSettings:
    """Read `rope_parameters` (newer files), or `rope_scaling` beside a theta of its own (older ones).

    Args:
        rope: either of them.
        theta_key: of the theta outside.
        default_theta: where there is none at all.
        config: the parsed config.json.
        head_dim: elements of a head.
        is_phi: the only family whose heads may be rotated in part; elsewhere `transformers` does not look at
            partial_rotary_factor, and nobody knows what a file means by it.

    Raises:
        ModelError: reason InvalidModel or UnsupportedModel.
    """
    theta = _first_number(((rope, "rope_theta"), (config, theta_key)), default_theta)
    fraction = _first_number(((rope, "partial_rotary_factor"), (config, "partial_rotary_factor")), 1.0)
    if fraction != 1 and not is_phi:
        raise unsupported(f"partial_rotary_factor = {fraction}")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if is_phi and isinstance(kind, str):
        kind = _PHI_SPELLINGS.get(kind, kind)
    if kind == "yarn" and theta <= 1:
        raise ModelError(f"the model's rope_theta is {theta}, which yarn rope scaling cannot blend")
    rotary_dim = int(head_dim * fraction)
    return RopeSettings(theta, rotary_dim, _scaling(kind, rope, config, rotary_dim))


def longest_context(config: Mapping[str, Any], scaling: RopeScaling | None) -> int:
    """Return how many tokens a model attends over with this scaling.

    With longrope that is what the short divisors are for: `transformers` rotates a text anew, keys included,
    once it is longer, which a cache of keys cannot follow. With dual chunk attention (Qwen 2.5 1M) it is the
    first chunk, within which that is plain attention.
    """
    stated = integer(config, "max_position_embeddings")
    chunks = mapping(config, "dual_chunk_attention_config")
    if chunks:
        stated = min(stated, integer(chunks, "chunk_size") - integer(chunks, "local_size"))
    match scaling:
        case YarnScaling(factor, original):
            return stated if chunks else max(stated, int(original * factor))
        case LongScaling():
            return min(stated, scaling.original_max_position)
    return stated


def _scaling(
    kind: Any, rope: Mapping[str, Any], config: Mapping[str, Any], rotary_dim: int
) -> RopeScaling | None:
    match kind:
        case "default" | "dynamic":  # dynamic changes nothing up to max_position_embeddings
            return None
        case "linear":
            return LinearScaling(_needed(kind, rope, "factor"))
        case "llama3":
            return _llama3(rope, config)
        case "yarn":
            return _yarn(rope, config)
        case "longrope":
            return _longrope(rope, config, rotary_dim)
    raise unsupported(f"rope scaling {kind!r} (supported: {_SUPPORTED})")


def _llama3(rope: Mapping[str, Any], config: Mapping[str, Any]) -> Llama3Scaling:
    low, high = (_needed("llama3", rope, f"{name}_freq_factor") for name in ("low", "high"))
    if high <= low:  # nothing is left to blend between them
        raise ModelError(f"llama3 rope scaling has a high_freq_factor of {high}, above {low} is needed")
    return Llama3Scaling(
        factor=_needed("llama3", rope, "factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=_original(rope, config),
    )


def _yarn(rope: Mapping[str, Any], config: Mapping[str, Any]) -> YarnScaling:
    factor, original = _needed("yarn", rope, "factor"), _original(rope, config)

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    attention_factor = mscale(1.0)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        attention_factor = mscale(number(rope, "mscale")) / mscale(number(rope, "mscale_all_dim"))
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        beta_fast=_first_number(((rope, "beta_fast"),), 32.0),
        beta_slow=_first_number(((rope, "beta_slow"),), 1.0),
        truncates=flag(rope, "truncate", default="truncate" not in rope),  # null is false, not the default
        attention_factor=_first_number(((rope, "attention_factor"),), attention_factor),
    )


def _longrope(rope: Mapping[str, Any], config: Mapping[str, Any], rotary_dim: int) -> LongScaling:
    original = _original(rope, config)
    factor = _first_number(((rope, "factor"),), integer(config, "max_position_embeddings") / original)
    attention_factor = 1.0
    if factor > 1 and original > 1:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original))
    divisors = rope.get("short_factor")
    if not isinstance(divisors, list) or len(divisors) != rotary_dim // 2:
        raise ModelError(f"longrope scaling needs a list of {rotary_dim // 2} numbers as 'short_factor'")
    return LongScaling(
        divisors=tuple(number({"short_factor": divisor}, "short_factor") for divisor in divisors),
        original_max_position=original,
        attention_factor=_first_number(((rope, "attention_factor"),), attention_factor),
    )


def _original(rope: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Tokens of the context before it was extended; a file's outer field wins, as in `transformers`."""
    key = "original_max_position_embeddings"
    found = next((place for place in (config, rope) if place.get(key) is not None), None)
    original = integer(config, "max_position_embeddings") if found is None else integer(found, key)
    if original < 1:
        raise ModelError(f"the model's {key} is {original}")
    return original


def _needed(kind: str, rope: Mapping[str, Any], key: str) -> float:
    if key not in rope:
        raise ModelError(f"{kind} rope scaling lacks {key!r}")
    return number(rope, key)


def _first_number(places: Sequence[tuple[Mapping[str, Any], str]], default: float) -> float:
    """Return the number at the first of these places that has one."""
    return next((number(*place) for place in places if place[0].get(place[1]) is not None), default)
