"""What a model is: its sizes and the few switches between the families of Llama-like decoders.

Readers for Hugging Face's config.json and for GGUF metadata. A family, or a field that would change the
result, that this runtime does not compute is refused here by name, before any weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import GgufFile


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3's rope scaling: low frequencies divided by `factor`, high ones kept, those between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything that shapes the computation, whatever file it came from."""

    name: str  # as the file spells it
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    tied_embeddings: bool  # lm_head is the embedding table
    qkv_bias: bool  # Qwen 2
    qk_norm: bool  # Qwen 3: RMSNorm of each query and key head before rope
    stored_dtype: str | None  # what the file's weights are, when it says

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for field in (*sizes, "head_dim", "max_position"):
            if getattr(self, field) < 1:
                raise ModelError(f"the model's {field} is {getattr(self, field)}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"{self.num_heads} heads cannot share {self.num_kv_heads} KV heads evenly")
        if self.head_dim % 2:
            raise ModelError(f"the model's head_dim is {self.head_dim}; rotary embedding needs an even one")


@dataclass(frozen=True, slots=True)
class _Family:
    qkv_bias: bool = False
    qk_norm: bool = False
    slides_by_default: bool = False  # a sliding_window is in use unless use_sliding_window says no


_FAMILIES = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(slides_by_default=True),
    "Qwen2ForCausalLM": _Family(qkv_bias=True),
    "Qwen3ForCausalLM": _Family(qk_norm=True),
}
_GGUF_FAMILIES = {"llama": _Family(), "qwen2": _Family(qkv_bias=True), "qwen3": _Family(qk_norm=True)}
# Llama 2 checkpoints carry pretraining_tp, which only splits a product into parts: not listed, no effect.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
}


def _unsupported(what: str) -> ModelError:
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
    name = (config.get("architectures") or [config.get("model_type")])[0]
    family = _FAMILIES.get(str(name))
    if family is None:
        raise _unsupported(f"architecture {name} (supported: {', '.join(_FAMILIES)})")
    max_position = _integer(config, "max_position_embeddings")
    _refuse_what_changes_results(config, family, max_position)
    num_heads = _integer(config, "num_attention_heads")
    hidden_size = _integer(config, "hidden_size")
    theta, scaling = _rope(config)
    return Architecture(
        name=str(name),
        vocab_size=_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size"),
        num_layers=_integer(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_integer(config, "num_key_value_heads", num_heads),
        head_dim=_integer(config, "head_dim", hidden_size // max(num_heads, 1)),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        max_position=max_position,
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        stored_dtype=config.get("dtype") or config.get("torch_dtype"),
    )


def _integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(f"the model's {key} is {value!r}, an integer is needed")
    return value


def _refuse_what_changes_results(config: Mapping[str, Any], family: _Family, max_position: int) -> None:
    quantization = config.get("quantization_config")
    if quantization:
        method = (
            quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
        )
        raise _unsupported(f"quantization_config ({method}); use the unquantized weights or a GGUF file: it")
    for key, neutral in _NEUTRAL_VALUES.items():
        if key in config and config[key] not in neutral:
            raise _unsupported(f"{key} = {config[key]!r}")
    if config.get("attention_bias") and not family.qkv_bias:
        raise _unsupported("attention_bias = true")
    window = config.get("sliding_window")
    is_sliding = config.get("use_sliding_window", family.slides_by_default)
    if window is not None and is_sliding and window < max_position:
        raise _unsupported(f"sliding_window = {window}")
    other_layers = set(config.get("layer_types") or []) - {"full_attention"}
    if other_layers:
        raise _unsupported(f"layer_types with {', '.join(sorted(other_layers))}")


def _rope(config: Mapping[str, Any]) -> tuple[float, Llama3Scaling | None]:
    """Read theta and scaling from `rope_parameters` (newer files) or `rope_theta` and `rope_scaling`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", 1) != 1:
        raise _unsupported(f"partial_rotary_factor = {rope['partial_rotary_factor']}")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise _unsupported(f"rope scaling {kind!r} (supported: default, llama3)")
    try:
        return theta, Llama3Scaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position=int(rope["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise ModelError(f"llama3 rope scaling lacks {error}") from error


def architecture_from_gguf(gguf: GgufFile) -> Architecture:
    """Understand a GGUF file's metadata.

    Raises:
        ModelError: reason InvalidModel (a key is missing) or UnsupportedModel (names what is not supported).
    """
    meta = gguf.metadata
    name = meta.get("general.architecture")
    family = _GGUF_FAMILIES.get(str(name))
    if family is None:
        raise _unsupported(f"GGUF architecture {name} (supported: {', '.join(_GGUF_FAMILIES)})")
    values = {k.removeprefix(f"{name}."): v for k, v in meta.items() if k.startswith(f"{name}.")}
    scaling = values.get("rope.scaling.type", "none")
    if scaling != "none":
        raise _unsupported(f"rope scaling {scaling!r} in a GGUF file")
    for key in ("expert_count", "attention.sliding_window"):
        if values.get(key):
            raise _unsupported(f"{name}.{key} = {values[key]}")
    if "token_embd.weight" not in gguf.tensors:
        raise ModelError(f"{gguf.path} has no tensor token_embd.weight")
    num_heads, hidden_size = _integer(values, "attention.head_count"), _integer(values, "embedding_length")
    head_dim = _integer(values, "attention.key_length", hidden_size // max(num_heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if values.get(key, head_dim) != head_dim:
            raise _unsupported(f"{name}.{key} = {values[key]} with a head size of {head_dim}")
    return Architecture(
        name=str(name),
        vocab_size=gguf.tensors["token_embd.weight"].shape[0],
        hidden_size=hidden_size,
        intermediate_size=_integer(values, "feed_forward_length"),
        num_layers=_integer(values, "block_count"),
        num_heads=num_heads,
        num_kv_heads=_integer(values, "attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rms_norm_eps=float(values.get("attention.layer_norm_rms_epsilon", 1e-6)),
        max_position=_integer(values, "context_length"),
        rope_theta=float(values.get("rope.freq_base", 10000.0)),
        rope_scaling=None,
        tied_embeddings="output.weight" not in gguf.tensors,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        stored_dtype=None,
    )
