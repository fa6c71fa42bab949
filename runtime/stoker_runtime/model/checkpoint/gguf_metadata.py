"""Reads what a GGUF file's metadata says of a model, and refuses by name what would change the result.

Source: what llama.cpp takes from each architecture's keys, and where they are missing, in its src/models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import GgufFile
from stoker_runtime.model.architecture import Architecture, ExpertNames, ExpertSettings, Family, Scales
from stoker_runtime.model.checkpoint.config_values import integer, number, unsupported
from stoker_runtime.model.checkpoint.gguf_layers import layer_kinds

_SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_SCALES = ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")
_WINDOW = "attention.sliding_window"
_MAX_EXPERTS = 4096  # eight times llama.cpp's limit
_EXPERTS = ExpertNames("mlp", gate="gate_proj", up="up_proj", down="down_proj")


@dataclass(frozen=True, slots=True)
class _Reading:
    """How one architecture's file is read.

    Args:
        family: of the model.
        own_keys: that only some architectures compute with; elsewhere they are refused.
    """

    family: Family
    own_keys: tuple[str, ...] = ()


_ARCHITECTURES = {
    "llama": _Reading(Family(expert_names=_EXPERTS), ("expert_count",)),
    "qwen2": _Reading(Family(qkv_bias=True)),
    "qwen3": _Reading(Family(qk_norm="head")),
    "qwen3moe": _Reading(Family(qk_norm="head", expert_names=_EXPERTS), ("expert_count",)),
    # Gemma's norms have the 1 that is added to their weights in the file.
    "gemma2": _Reading(Family(norms="both", norm_offset=0.0, activation="gelu_tanh"), (*_SOFT_CAPS, _WINDOW)),
    "gemma3": _Reading(
        Family(qk_norm="head", norms="both", norm_offset=0.0, activation="gelu_tanh"),
        (_SOFT_CAPS[1], _WINDOW),
    ),
    "phi3": _Reading(Family(has_fused_projections=True), (_WINDOW,)),
    "granite": _Reading(Family(), _SCALES),
    "olmo2": _Reading(Family(qk_norm="projection", norms="outputs")),
    "smollm3": _Reading(Family()),
}
# Gemma's sizes whose scores are scaled by the width of a head as it would be without a size of its own, by
# their number of layers: the 27B models. No key says so.
_NARROW_LAYERS = {"gemma2": 46, "gemma3": 62}
# What these keys may say where they are not computed with: most of them change the result, or name what does.
_NONE: tuple[Any, ...] = (0,)  # False is 0
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": _NONE,
    "attention.key_length_mla": _NONE,
    "attention.kv_lora_rank": _NONE,
    "attention.max_alibi_bias": _NONE,
    "attention.output_scale": _NONE,
    "attention.q_lora_rank": _NONE,
    "attention.scale": _NONE,
    "attention.shared_kv_layers": _NONE,
    "attention.sliding_window": _NONE,
    "attention.temperature_length": _NONE,
    "attention.temperature_scale": _NONE,
    "attn_logit_softcapping": _NONE,
    "embedding_length_per_layer_input": _NONE,
    "embedding_scale": (0, 1),
    "expert_count": _NONE,
    "expert_gating_func": (0, 1),  # softmax, by name or by default
    "expert_group_count": (0, 1),
    "expert_shared_count": _NONE,
    "expert_shared_feed_forward_length": _NONE,
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0, 1),
    "final_logit_softcapping": _NONE,
    "full_attention_interval": _NONE,
    "interleave_moe_layer_step": (0, 1),
    "leading_dense_block_count": _NONE,
    "logit_scale": (0, 1),
    "moe_every_n_layers": (0, 1),
    "nextn_predict_layers": _NONE,
    "residual_scale": (0, 1),
    "rope.dimension_sections": _NONE,
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_attn_factor": _NONE,  # llama.cpp and `transformers` take it for different things
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_log_multiplier": _NONE,
    "router_logit_softcapping": _NONE,
    "swin_norm": _NONE,
    "use_parallel_residual": _NONE,
}


def architecture_from_gguf(gguf: GgufFile) -> Architecture:
    """Understand a GGUF file's metadata.

    Raises:
        ModelError: reason InvalidModel (a key is missing) or UnsupportedModel (names what is not supported).
    """
    meta = gguf.metadata
    name = str(meta.get("general.architecture"))
    reading = _ARCHITECTURES.get(name)
    if reading is None:
        raise unsupported(f"GGUF architecture {name} (supported: {', '.join(_ARCHITECTURES)})")
    values = {k.removeprefix(f"{name}."): v for k, v in meta.items() if k.startswith(f"{name}.")}
    for key, neutral in _NEUTRAL_VALUES.items():
        if key in values and key not in reading.own_keys and values[key] not in neutral:
            raise unsupported(f"{name}.{key} = {values[key]}")
    if "token_embd.weight" not in gguf.tensors:
        raise ModelError(f"{gguf.path} has no tensor token_embd.weight")
    num_heads, hidden_size = integer(values, "attention.head_count"), integer(values, "embedding_length")
    head_dim = integer(values, "attention.key_length", hidden_size // max(num_heads, 1))
    value_length = values.get("attention.value_length", head_dim)
    if value_length != head_dim:
        raise unsupported(f"{name}.attention.value_length = {value_length} with a head size of {head_dim}")
    experts = _experts(values, name) if reading.family.expert_names else None
    layers, longest = layer_kinds(gguf, values, name, head_dim, is_sparse=experts is not None)
    return Architecture(
        name=name,
        family=reading.family,
        vocab_size=gguf.tensors["token_embd.weight"].shape[0],
        hidden_size=hidden_size,
        intermediate_size=integer(values, "feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=integer(values, "attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rms_norm_eps=number(values, "attention.layer_norm_rms_epsilon", 1e-6),
        max_position=longest,
        tied_embeddings="output.weight" not in gguf.tensors,
        stored_dtype=None,
        layers=layers,
        scales=_scales(values, name, hidden_size, num_heads, len(layers)),
        experts=experts,
    )


def _scales(
    values: Mapping[str, Any], name: str, hidden_size: int, num_heads: int, num_layers: int
) -> Scales:
    if name == "granite":
        embedding, residual, attention, logits = (_factor(values, key) for key in _SCALES)
        return Scales(
            embedding=embedding or 1.0, residual=residual or 1.0, attention=attention, logits=logits or 1.0
        )
    if name not in _NARROW_LAYERS:
        return Scales()
    is_narrow = num_layers == _NARROW_LAYERS[name]
    if name == "gemma2":  # older files lack the keys, not the caps
        values = {_SOFT_CAPS[0]: 50.0, _SOFT_CAPS[1]: 30.0, **values}
    return Scales(
        embedding=hidden_size**0.5,
        rounds_embedding=True,
        attention=max(hidden_size // max(num_heads, 1), 1) ** -0.5 if is_narrow else None,
        attention_cap=_factor(values, _SOFT_CAPS[0]),
        logits_cap=_factor(values, _SOFT_CAPS[1]),
    )


def _factor(values: Mapping[str, Any], key: str) -> float | None:
    """Return a number; None for 0, which says that there is none."""
    return number(values, key) if values.get(key) else None


def _experts(values: Mapping[str, Any], name: str) -> ExpertSettings | None:
    """Read what all layers have in place of the MLP; a token's weights add up to 1 in both architectures."""
    count = integer(values, "expert_count", 0)
    if count == 0 and name == "llama":
        return None
    num_per_token, size = integer(values, "expert_used_count"), integer(values, "feed_forward_length")
    if count > _MAX_EXPERTS:  # the file's header alone could make them take all memory
        raise unsupported(f"{name}.expert_count = {count}, more than {_MAX_EXPERTS},")
    stated = integer(values, "expert_feed_forward_length", 0)
    if name == "llama":
        if stated not in (0, size):
            raise unsupported(f"{name}.expert_feed_forward_length = {stated} beside {size} of the layer")
    else:
        size = stated or size // max(num_per_token, 1)
    return ExpertSettings(count, num_per_token, size, normalizes_weights=True)
