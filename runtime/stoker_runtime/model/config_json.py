"""Reads Hugging Face's config.json.

A family, or a field that would change the result, that this runtime does not compute is refused here by name,
before any weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import Architecture, Family, LayerKind, Llama3Scaling, Scales

# Which layers a sliding_window is for where layer_types does not say: "all"; those that max_window_layers
# leaves over, and only with use_sliding_window ("upper"); or those without rope, likewise ("ropeless").
_WindowRule = Literal["all", "upper", "ropeless"]
_WINDOW_RULES: dict[str, _WindowRule] = {
    "MistralForCausalLM": "all",
    "Phi3ForCausalLM": "all",
    "Qwen2ForCausalLM": "upper",
    "Qwen3ForCausalLM": "upper",
    "SmolLM3ForCausalLM": "ropeless",
}


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What `transformers` takes where a config.json is silent and families disagree."""

    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tied_embeddings: bool = False
    rope_interval: int | None = None  # every so many layers, one has no rope


_FAMILIES: dict[str, tuple[Family, _Defaults]] = {
    "LlamaForCausalLM": (Family(), _Defaults()),
    "MistralForCausalLM": (Family(), _Defaults()),
    "Qwen2ForCausalLM": (Family(qkv_bias=True), _Defaults()),
    "Qwen3ForCausalLM": (Family(qk_norm="head"), _Defaults()),
    "SmolLM3ForCausalLM": (
        Family(),
        _Defaults(rope_theta=2_000_000.0, tied_embeddings=True, rope_interval=4),
    ),
    "Phi3ForCausalLM": (Family(has_fused_projections=True), _Defaults(rms_norm_eps=1e-5)),
    "GraniteForCausalLM": (Family(), _Defaults()),
    "Olmo2ForCausalLM": (Family(qk_norm="projection", norms_outputs=True), _Defaults(rms_norm_eps=1e-5)),
}
_GRANITE = "GraniteForCausalLM"
_GRANITE_SCALES = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
# Llama 2 checkpoints carry pretraining_tp, which only splits a product into parts: not listed, no effect.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}


def unsupported(what: str) -> ModelError:
    """Return the refusal of something by name."""
    return ModelError(f"{what} is not supported", reason="UnsupportedModel")


def read_config_json(path: Path) -> Architecture:
    """Read a Hugging Face config.json.

    Raises:
        ModelError: reason InvalidModel (missing or broken) or UnsupportedModel (names what is not supported).
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} has neither config.json nor a .gguf file") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not an object")
    return architecture_from_config(config)


def architecture_from_config(config: Mapping[str, Any]) -> Architecture:
    """Understand a parsed config.json. Raises ModelError as read_config_json does."""
    name = str((config.get("architectures") or [config.get("model_type")])[0])
    if name not in _FAMILIES:
        raise unsupported(f"architecture {name} (supported: {', '.join(_FAMILIES)})")
    family, defaults = _FAMILIES[name]
    _refuse_what_changes_results(config, name, family)
    num_heads = integer(config, "num_attention_heads")
    hidden_size = integer(config, "hidden_size")
    theta, scaling = _rope(config, defaults.rope_theta)
    return Architecture(
        name=name,
        family=family,
        vocab_size=integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=integer(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=integer(config, "num_key_value_heads", num_heads),
        head_dim=integer(config, "head_dim", hidden_size // max(num_heads, 1)),
        rms_norm_eps=float(config.get("rms_norm_eps", defaults.rms_norm_eps)),
        max_position=integer(config, "max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(config.get("tie_word_embeddings", defaults.tied_embeddings)),
        stored_dtype=config.get("dtype") or config.get("torch_dtype"),
        layers=_layers(config, name, defaults),
        scales=_scales(config) if name == _GRANITE else Scales(),
    )


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return an integer field. Raises ModelError, naming the key, for anything else."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(f"the model's {key} is {value!r}, an integer is needed")
    return value


def _refuse_what_changes_results(config: Mapping[str, Any], name: str, family: Family) -> None:
    quantization = config.get("quantization_config")
    if quantization:
        method = (
            quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
        )
        raise unsupported(f"quantization_config ({method}); use the unquantized weights or a GGUF file: it")
    for key, neutral in _NEUTRAL_VALUES.items():
        if key in config and config[key] not in neutral:
            raise unsupported(f"{key} = {config[key]!r}")
    if config.get("attention_bias") and not family.qkv_bias:
        raise unsupported("attention_bias = true")
    if name != _GRANITE:
        for key in _GRANITE_SCALES:
            if config.get(key, 1) != 1:
                raise unsupported(f"{key} = {config[key]!r} in {name}")


def _scales(config: Mapping[str, Any]) -> Scales:
    embedding, residual, attention, logits = (float(config.get(key, 1.0)) for key in _GRANITE_SCALES)
    return Scales(embedding, residual, attention, logits)


def _layers(config: Mapping[str, Any], name: str, defaults: _Defaults) -> tuple[LayerKind, ...]:
    num_layers = integer(config, "num_hidden_layers")
    ropes = _ropes(config, defaults, num_layers)
    windows = _windows(config, _WINDOW_RULES.get(name), ropes)
    return tuple(LayerKind(window, has_rope) for window, has_rope in zip(windows, ropes, strict=True))


def _ropes(config: Mapping[str, Any], defaults: _Defaults, num_layers: int) -> list[bool]:
    """Which layers rotate: no_rope_layers has, despite its name, a 1 for each that does."""
    if defaults.rope_interval is None:
        return [True] * num_layers
    listed = config.get("no_rope_layers")
    if listed is not None:
        return [bool(flag) for flag in _per_layer("no_rope_layers", listed, num_layers)]
    interval = integer(config, "no_rope_layer_interval", defaults.rope_interval)
    if interval < 1:
        raise ModelError(f"the model's no_rope_layer_interval is {interval}")
    return [(index + 1) % interval != 0 for index in range(num_layers)]


def _windows(config: Mapping[str, Any], rule: _WindowRule | None, ropes: Sequence[bool]) -> list[int | None]:
    """The window of each layer; one as long as the longest context is none."""
    kinds = config.get("layer_types")
    if kinds is not None:
        others = set(map(str, _per_layer("layer_types", kinds, len(ropes)))) - {"full_attention"}
        is_known = others <= {"sliding_attention"} and rule is not None
        if others and not (is_known and config.get("sliding_window") is not None):
            raise unsupported(f"layer_types with {', '.join(sorted(others))}")
    is_used = rule is not None and config.get("use_sliding_window", rule == "all")
    if config.get("sliding_window") is None or not is_used:
        return [None] * len(ropes)
    window = integer(config, "sliding_window")
    if window < 1:
        raise ModelError(f"the model's sliding_window is {window}")
    if window >= integer(config, "max_position_embeddings"):
        return [None] * len(ropes)
    return [window if slides else None for slides in _slides(config, rule, kinds, ropes)]


def _slides(
    config: Mapping[str, Any], rule: _WindowRule | None, kinds: Sequence[str] | None, ropes: Sequence[bool]
) -> list[bool]:
    """Which layers the window in use is for."""
    if rule == "all":  # their attention does not look at layer_types
        return [True] * len(ropes)
    if kinds is not None:
        return [kind == "sliding_attention" for kind in kinds]
    if rule == "ropeless":
        return [not has_rope for has_rope in ropes]
    first = integer(config, "max_window_layers", 28)
    return [index >= first for index in range(len(ropes))]


def _per_layer(key: str, values: Any, num_layers: int) -> Sequence[Any]:
    if not isinstance(values, list) or len(values) != num_layers:
        raise ModelError(f"the model's {key} is not a list of {num_layers}, one for each layer")
    return values


def _rope(config: Mapping[str, Any], default_theta: float) -> tuple[float, Llama3Scaling | None]:
    """Read theta and scaling from `rope_parameters` (newer files) or `rope_theta` and `rope_scaling`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or default_theta)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", 1) != 1:
        raise unsupported(f"partial_rotary_factor = {rope['partial_rotary_factor']}")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise unsupported(f"rope scaling {kind!r} (supported: default, llama3)")
    try:
        return theta, Llama3Scaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position=int(rope["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise ModelError(f"llama3 rope scaling lacks {error}") from error
