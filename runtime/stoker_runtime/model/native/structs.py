"""The structs of csrc/api.h, field by field. Pointers are addresses of tensors that somebody keeps alive."""

from __future__ import annotations

from ctypes import Structure, c_double, c_float, c_int32, c_void_p


class Part(Structure):
    """Rows of a weight in a GGUF file's blocks."""

    _fields_ = (
        ("packed", c_void_p),
        ("type", c_int32),
        ("first_panel", c_int32),
    )


class Linear(Structure):
    """A packed weight and its bias."""

    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("num_inputs", c_int32),
        ("num_outputs", c_int32),
        ("is_quantized", c_int32),
        ("num_parts", c_int32),
        ("parts", c_void_p),
    )


class Experts(Structure):
    """A mixture in place of a layer's MLP."""

    _fields_ = (
        ("router", Linear),
        ("gate_up", c_void_p),
        ("down", c_void_p),
        ("num_experts", c_int32),
        ("num_per_token", c_int32),
        ("intermediate_size", c_int32),
        ("normalizes_weights", c_int32),
    )


class Layer(Structure):
    """One layer's weights."""

    _fields_ = (
        ("qkv", Linear),
        ("output", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("experts", c_void_p),
        ("attention_before", c_void_p),
        ("attention_behind", c_void_p),
        ("mlp_before", c_void_p),
        ("mlp_behind", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("rotary_dim", c_int32),
        ("window", c_int32),
    )


class Model(Structure):
    """A model's sizes, switches and weights."""

    _fields_ = (
        ("num_layers", c_int32),
        ("hidden_size", c_int32),
        ("intermediate_size", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("vocab_size", c_int32),
        ("normalizes_projections", c_int32),
        ("has_gelu", c_int32),
        ("has_float_norms", c_int32),
        ("eps", c_float),
        ("embedding_scale", c_float),
        ("residual_scale", c_float),
        ("attention_scale", c_float),
        ("attention_cap", c_float),
        ("logits_divisor", c_float),
        ("logits_cap", c_float),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("lm_head", Linear),
        ("layers", c_void_p),
        ("embedding_part", c_void_p),
    )


class Sequence(Structure):
    """One request's rows of a step."""

    _fields_ = (
        ("first_row", c_int32),
        ("num_tokens", c_int32),
        ("num_computed", c_int32),
        ("first_block", c_int32),
    )


class Step(Structure):
    """What one step computes."""

    _fields_ = (
        ("num_tokens", c_int32),
        ("num_sequences", c_int32),
        ("num_sampled", c_int32),
        ("token_ids", c_void_p),
        ("sequences", c_void_p),
        ("block_ids", c_void_p),
        ("sampled_rows", c_void_p),
    )


class Cache(Structure):
    """The KV cache."""

    _fields_ = (
        ("storage", c_void_p),
        ("num_blocks", c_int32),
        ("block_size", c_int32),
    )


class Pick(Structure):
    """How one row's token is picked."""

    _fields_ = (
        ("place", c_double),
        ("temperature", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("top_k", c_int32),
    )


ALL = (
    Linear,
    Experts,
    Layer,
    Model,
    Sequence,
    Step,
    Cache,
    Pick,
    Part,
)  # in the order of stoker_struct_sizes
