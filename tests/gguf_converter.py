"""What llama.cpp's converter writes of a model: which metadata keys, and tensors under which names.

Source: its conversion/*.py, `set_gguf_parameters` and `modify_tensors` of each family; names out of the
`gguf` package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import gguf
import numpy as np
import transformers

Array = np.ndarray[Any, Any]

# Whose converter interleaves the halves of each head's rotary pairs, for llama.cpp's older kind of rotation.
_INTERLEAVED = ("llama", "granite", "smollm3")
_GEMMA = ("gemma2", "gemma3")


def add_parameters(writer: gguf.GGUFWriter, config: transformers.PreTrainedConfig) -> None:
    """Write the metadata of a model of the writer's architecture."""
    name = writer.arch
    if name == "phi3":
        _add_phi3(writer, config)
        return
    writer.add_context_length(config.max_position_embeddings)
    _add_sizes(writer, config)
    if name != "granite":
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if name == "gemma2":  # no rope at all: the reader has to know its base
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)
        return
    _add_rope(writer, config.rope_parameters)
    if name in _INTERLEAVED:
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    if name == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        if config.final_logit_softcapping:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if name == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    num_experts = getattr(config, "num_local_experts", None)
    if num_experts:
        writer.add_expert_count(num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if name == "qwen3moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _add_sizes(writer: gguf.GGUFWriter, config: transformers.PreTrainedConfig) -> None:
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_rope(writer: gguf.GGUFWriter, parameters: Mapping[str, Any]) -> None:
    usual = parameters.get("full_attention", parameters)
    kind = usual["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(usual["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(usual["original_max_position_embeddings"])
        for key in ("beta_fast", "beta_slow"):
            if usual.get(key) is not None:
                getattr(writer, f"add_rope_scaling_yarn_{key}")(usual[key])
    writer.add_rope_freq_base(usual["rope_theta"])
    if "sliding_attention" in parameters:
        writer.add_rope_freq_base_swa(parameters["sliding_attention"]["rope_theta"])


def _add_phi3(writer: gguf.GGUFWriter, config: transformers.PreTrainedConfig) -> None:
    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    _add_sizes(writer, config)
    fraction = rope.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(fraction * config.hidden_size) // config.num_attention_heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(config.sliding_window or 0)
    if rope["rope_type"] == "longrope":
        original = config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(
            (1 + np.log(scale) / np.log(original)) ** 0.5 if scale > 1 else 1.0
        )


def converted(model: transformers.PreTrainedModel, architecture: str) -> Iterator[tuple[str, Array]]:
    """A model's tensors as the converter stores them, by GGUF name."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and (config.tie_word_embeddings or architecture in _GEMMA):
            continue
        values = weight.numpy()
        if architecture in _GEMMA and name.endswith("norm.weight"):
            values = values + np.float32(1)
        part = name.split(".")[-2]
        if architecture in _INTERLEAVED and part in heads:
            shape = (heads[part], 2, values.shape[0] // heads[part] // 2, *values.shape[1:])
            values = values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
        for own_name, own_values in _apart(name, values):
            yield gguf_name(own_name, architecture), np.ascontiguousarray(own_values)
    rope = config.rope_parameters
    if architecture == "phi3" and rope["rope_type"] == "longrope":
        for kind in ("long", "short"):
            yield f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], dtype=np.float32)


def _apart(name: str, values: Array) -> Iterator[tuple[str, Array]]:
    """The stacks of a mixture, which `transformers` holds gate and up in one."""
    module, _, last = name.rpartition(".")
    if last == "gate_up_proj":
        for part, half in zip(("gate_proj", "up_proj"), np.split(values, 2, axis=1), strict=True):
            yield f"{module}.{part}.weight", half
    elif last == "down_proj":
        yield f"{name}.weight", values
    else:
        yield name, values


@cache
def _names(architecture: str) -> gguf.TensorNameMap:
    (kind,) = (kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return gguf.get_tensor_name_map(kind, 64)


def gguf_name(name: str, architecture: str) -> str:
    """The name that the converter gives a Hugging Face tensor."""
    found = _names(architecture).get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return str(found)
