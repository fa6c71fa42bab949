"""Reads Hugging Face's config.json.

A family, or a field that would change the result, that this runtime does not compute is refused here by name,
before any weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stoker_runtime.errors import ModelError
from stoker_runtime.json_files import read_object
from stoker_runtime.model.architecture import Architecture, ExpertNames, ExpertSettings, Family, Scales
from stoker_runtime.model.checkpoint.config_values import flag, integer, number, unsupported
from stoker_runtime.model.checkpoint.layer_kinds import LayerDefaults, layer_kinds
from stoker_runtime.model.checkpoint.quantization_config import read_storage
from stoker_runtime.model.checkpoint.wrapped import WRAPPED_NAMES, text_config

_GEMMA = Family(norms="both", norm_offset=1.0, activation="gelu_tanh")
_LONGEST = "max_position_embeddings"
_QWEN_FIELDS: Mapping[str, Any] = {"num_key_value_heads": 32, "sliding_window": 4096, _LONGEST: 32_768}

_LAYERS = LayerDefaults()


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What `transformers` takes where a config.json is silent and families disagree.

    Args:
        rms_norm_eps: of all norms.
        tied_embeddings: lm_head is the embedding table.
        layers: what they are.
        fields: further ones, as the file would say them. Sizes are among them where the family is also the
            text part of another: a nested configuration is saved without what is as in the first model.
    """

    rms_norm_eps: float = 1e-6
    tied_embeddings: bool = False
    layers: LayerDefaults = _LAYERS
    fields: Mapping[str, Any] = field(default_factory=dict)


_FAMILIES: dict[str, tuple[Family, _Defaults]] = {
    "LlamaForCausalLM": (Family(), _Defaults(fields={_LONGEST: 2048})),
    "MistralForCausalLM": (
        Family(),
        _Defaults(
            fields={
                "vocab_size": 32_000,
                "hidden_size": 4096,
                "intermediate_size": 14_336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 131_072,
                "sliding_window": 4096,
            }
        ),
    ),
    "Qwen2ForCausalLM": (Family(qkv_bias=True), _Defaults(fields=_QWEN_FIELDS)),
    "Qwen3ForCausalLM": (Family(qk_norm="head"), _Defaults(fields={**_QWEN_FIELDS, "head_dim": 128})),
    "SmolLM3ForCausalLM": (
        Family(),
        _Defaults(
            tied_embeddings=True,
            layers=LayerDefaults(rope_theta=2_000_000.0, rope_interval=4),
            fields={"num_key_value_heads": 4, _LONGEST: 32_768},
        ),
    ),
    "Phi3ForCausalLM": (
        Family(has_fused_projections=True),
        _Defaults(rms_norm_eps=1e-5, fields={"original_max_position_embeddings": 4096, _LONGEST: 4096}),
    ),
    "GraniteForCausalLM": (Family(), _Defaults(fields={_LONGEST: 2048})),
    "Olmo2ForCausalLM": (
        Family(qk_norm="projection", norms="outputs"),
        _Defaults(rms_norm_eps=1e-5, fields={_LONGEST: 2048}),
    ),
    "MixtralForCausalLM": (
        Family(expert_names=ExpertNames("block_sparse_moe", gate="w1", up="w3", down="w2")),
        _Defaults(
            rms_norm_eps=1e-5,
            layers=LayerDefaults(rope_theta=1_000_000.0, has_experts=True),
            fields={"num_key_value_heads": 8, _LONGEST: 131_072},
        ),
    ),
    "Qwen3MoeForCausalLM": (
        Family(
            qk_norm="head", expert_names=ExpertNames("mlp", gate="gate_proj", up="up_proj", down="down_proj")
        ),
        _Defaults(
            layers=LayerDefaults(has_experts=True, may_be_dense=True),
            fields={**_QWEN_FIELDS, "num_key_value_heads": 4},
        ),
    ),
    "Gemma2ForCausalLM": (
        _GEMMA,
        _Defaults(
            tied_embeddings=True, fields={"num_key_value_heads": 4, "sliding_window": 4096, _LONGEST: 8192}
        ),
    ),
    "Gemma3ForCausalLM": (
        replace(_GEMMA, qk_norm="head"),
        _Defaults(
            tied_embeddings=True,
            layers=LayerDefaults(rope_theta=1_000_000.0, local_rope_theta=10000.0),
            fields={
                "vocab_size": 262_208,
                "hidden_size": 2304,
                "intermediate_size": 9216,
                "num_hidden_layers": 26,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "max_position_embeddings": 131_072,
                "sliding_window": 4096,
            },
        ),
    ),
}
ARCHITECTURES = (*_FAMILIES, *WRAPPED_NAMES)
# By which `transformers` chooses, whatever architectures says.
_MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "SmolLM3ForCausalLM": "smollm3",
    "Phi3ForCausalLM": "phi3",
    "GraniteForCausalLM": "granite",
    "Olmo2ForCausalLM": "olmo2",
    "MixtralForCausalLM": "mixtral",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "Gemma3ForConditionalGeneration": "gemma3",
    "Mistral3ForConditionalGeneration": "mistral3",
}
_SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
# Fields that only these families compute with; elsewhere any other value than the neutral one is refused.
_OWN_FIELDS: dict[str, tuple[str, ...]] = {
    "GraniteForCausalLM": (
        "embedding_multiplier",
        "residual_multiplier",
        "attention_multiplier",
        "logits_scaling",
    ),
    "Gemma2ForCausalLM": (*_SOFT_CAPS, "query_pre_attn_scalar"),
    "Gemma3ForCausalLM": ("final_logit_softcapping", "query_pre_attn_scalar"),
}
# Llama 2 checkpoints carry pretraining_tp, which only splits a product into parts: not listed, no effect.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "mlp_bias": (False, None),
    "use_bidirectional_attention": (False, None),
    "is_causal": (True,),
    **dict.fromkeys(_OWN_FIELDS["GraniteForCausalLM"], (1, None)),
    **dict.fromkeys(_OWN_FIELDS["Gemma2ForCausalLM"], (None,)),
}
# Where AutoGPTQ and AutoAWQ wrote what is now config.json's quantization_config, and its quant_method.
_OLDER_QUANTIZATION = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh",)}


def read_config_json(path: Path) -> Architecture:
    """Read a Hugging Face config.json.

    Raises:
        ModelError: reason InvalidModel (missing or broken) or UnsupportedModel (names what is not supported).
    """
    if not path.exists():
        raise _no_config(path.parent)
    config = read_object(path)
    if config.get("quantization_config"):
        return architecture_from_config(config)
    for name, method in _OLDER_QUANTIZATION.items():
        beside = path.parent / name
        if beside.exists():
            config["quantization_config"] = {"quant_method": method, **read_object(beside)}
            try:
                return architecture_from_config(config)
            except ModelError as error:
                raise ModelError(f"{error} (with the fields of {name})", reason=error.reason) from error
    return architecture_from_config(config)


def _no_config(folder: Path) -> ModelError:
    if (folder / "adapter_config.json").exists():
        return ModelError(
            f"{folder} is a PEFT adapter and no whole model; merge it into its base model: python -c 'from "
            f'peft import AutoPeftModelForCausalLM as M; M.from_pretrained("{folder}").merge_and_unload()'
            ".save_pretrained(\"OUT\")', and serve OUT, with the tokenizer's files beside it",
            reason="UnsupportedModel",
        )
    if (folder / "params.json").exists():
        return ModelError(
            f"{folder} has no config.json: it is in Mistral's or Meta's own layout (params.json); use the "
            "same model in Hugging Face's format",
            reason="UnsupportedModel",
        )
    return ModelError(f"{folder} has neither config.json nor a .gguf file; download the model's config.json")


def architecture_from_config(config: Mapping[str, Any]) -> Architecture:
    """Understand a parsed config.json. Raises ModelError as read_config_json does."""
    name = _architecture_name(config)
    if name in WRAPPED_NAMES:
        text_part, config = text_config(config, name)
        return replace(architecture_from_config({**config, "architectures": [text_part]}), wrapper=name)
    family, defaults = _FAMILIES[name]
    config = {**defaults.fields, **config}
    _refuse_what_changes_results(config, name, family)
    num_heads = integer(config, "num_attention_heads")
    hidden_size = integer(config, "hidden_size")
    head_dim = integer(config, "head_dim", _head_dim(family, hidden_size, num_heads))
    layers, longest = layer_kinds(config, name, defaults.layers, head_dim)
    return Architecture(
        name=name,
        family=family,
        vocab_size=integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=integer(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=integer(config, "num_key_value_heads", num_heads),
        head_dim=head_dim,
        rms_norm_eps=number(config, "rms_norm_eps", defaults.rms_norm_eps),
        max_position=longest,
        tied_embeddings=flag(config, "tie_word_embeddings", defaults.tied_embeddings),
        stored_dtype=_stored_dtype(config),
        layers=layers,
        scales=_scales(config, name, hidden_size),
        experts=_experts(config, name) if family.expert_names else None,
        storage=read_storage(config),
    )


def _architecture_name(config: Mapping[str, Any]) -> str:
    names, model_type = config.get("architectures") or [], config.get("model_type")
    if not isinstance(names, list):
        raise ModelError(f"the model's architectures is {names!r}, a list of names is needed")
    known = next((str(name) for name in names if name in ARCHITECTURES), None)
    name = known or _name_by_type(names, config) or str(names[0] if names else model_type)
    if name not in ARCHITECTURES:
        raise unsupported(f"architecture {name} (supported: {', '.join(ARCHITECTURES)})")
    if model_type not in (None, _MODEL_TYPES[name]):
        raise unsupported(f"model_type = {model_type!r} beside architectures = [{name!r}]")
    return name


def _name_by_type(names: Sequence[Any], config: Mapping[str, Any]) -> str | None:
    """Return a model_type's architecture, for files that name none, an old spelling or the headless model.

    Not where the name is another head's, nor where it is of code that comes with the file.
    """
    plain = all(str(name).endswith(("ForCausalLM", "Model")) for name in names)
    if not plain or (names and config.get("auto_map")):
        return None
    return next((name for name, kind in _MODEL_TYPES.items() if kind == config.get("model_type")), None)


def _stored_dtype(config: Mapping[str, Any]) -> str | None:
    name = config.get("dtype") or config.get("torch_dtype")
    if name is not None and not isinstance(name, str):
        raise ModelError(f"the model's dtype is {name!r}, a name is needed")
    return name


def _head_dim(family: Family, hidden_size: int, num_heads: int) -> int:
    return 256 if family.norms == "both" else hidden_size // max(num_heads, 1)


def _refuse_what_changes_results(config: Mapping[str, Any], name: str, family: Family) -> None:
    own = _OWN_FIELDS.get(name, ())
    for key, neutral in _NEUTRAL_VALUES.items():
        if key in config and key not in own and config[key] not in neutral:
            raise unsupported(f"{key} = {config[key]!r}")
    key = "hidden_activation" if config.get("hidden_activation") else "hidden_act"
    activation = config.get(key)
    if activation is not None and activation not in _ACTIVATIONS[family.activation]:
        raise unsupported(f"{key} = {activation!r}")
    if flag(config, "attention_bias") and not family.qkv_bias:
        raise unsupported("attention_bias = true")


def _experts(config: Mapping[str, Any], name: str) -> ExpertSettings:
    count = "num_local_experts" if config.get("num_experts") is None else "num_experts"
    is_mixtral = name == "MixtralForCausalLM"
    return ExpertSettings(
        num_experts=integer(config, count),
        num_per_token=integer(config, "num_experts_per_tok"),
        intermediate_size=integer(config, "intermediate_size" if is_mixtral else "moe_intermediate_size"),
        normalizes_weights=is_mixtral or flag(config, "norm_topk_prob"),
    )


def _scales(config: Mapping[str, Any], name: str, hidden_size: int) -> Scales:
    own = _OWN_FIELDS.get(name, ())
    if "embedding_multiplier" in own:
        embedding, residual, attention, logits = (number(config, key, 1.0) for key in own)
        return Scales(embedding=embedding, residual=residual, attention=attention, logits=logits)
    if "query_pre_attn_scalar" not in own:
        return Scales()
    is_second = name == "Gemma2ForCausalLM"
    attention_cap, logits_cap = (
        _soft_cap(config, key, default if is_second else None)
        for key, default in zip(_SOFT_CAPS, (50.0, 30.0), strict=True)
    )
    return Scales(
        embedding=hidden_size**0.5,
        rounds_embedding=True,
        attention=number(config, "query_pre_attn_scalar", 256) ** -0.5,
        attention_cap=attention_cap,
        logits_cap=logits_cap,
    )


def _soft_cap(config: Mapping[str, Any], key: str, default: float | None) -> float | None:
    """Return a cap; null is none, which is not what leaving the field out says."""
    return None if config.get(key, default) is None else number(config, key, default)
