"""Reads what a GGUF file's metadata says of a model, and refuses by name what would change the result."""

from __future__ import annotations

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import GgufFile
from stoker_runtime.model.architecture import Architecture, Family, LayerKind, RopeSettings
from stoker_runtime.model.config_values import integer, number, unsupported

_FAMILIES = {"llama": Family(), "qwen2": Family(qkv_bias=True), "qwen3": Family(qk_norm="head")}


def architecture_from_gguf(gguf: GgufFile) -> Architecture:
    """Understand a GGUF file's metadata.

    Raises:
        ModelError: reason InvalidModel (a key is missing) or UnsupportedModel (names what is not supported).
    """
    meta = gguf.metadata
    name = str(meta.get("general.architecture"))
    family = _FAMILIES.get(name)
    if family is None:
        raise unsupported(f"GGUF architecture {name} (supported: {', '.join(_FAMILIES)})")
    values = {k.removeprefix(f"{name}."): v for k, v in meta.items() if k.startswith(f"{name}.")}
    scaling = values.get("rope.scaling.type", "none")
    if scaling != "none":
        raise unsupported(f"rope scaling {scaling!r} in a GGUF file")
    for key in ("expert_count", "attention.sliding_window"):
        if values.get(key):
            raise unsupported(f"{name}.{key} = {values[key]}")
    if "token_embd.weight" not in gguf.tensors:
        raise ModelError(f"{gguf.path} has no tensor token_embd.weight")
    num_heads, hidden_size = integer(values, "attention.head_count"), integer(values, "embedding_length")
    head_dim = integer(values, "attention.key_length", hidden_size // max(num_heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if values.get(key, head_dim) != head_dim:
            raise unsupported(f"{name}.{key} = {values[key]} with a head size of {head_dim}")
    rope = RopeSettings(theta=number(values, "rope.freq_base", 10000.0), rotary_dim=head_dim)
    return Architecture(
        name=name,
        family=family,
        vocab_size=gguf.tensors["token_embd.weight"].shape[0],
        hidden_size=hidden_size,
        intermediate_size=integer(values, "feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=integer(values, "attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rms_norm_eps=number(values, "attention.layer_norm_rms_epsilon", 1e-6),
        max_position=integer(values, "context_length"),
        tied_embeddings="output.weight" not in gguf.tensors,
        stored_dtype=None,
        layers=(LayerKind(rope),) * integer(values, "block_count"),
    )
