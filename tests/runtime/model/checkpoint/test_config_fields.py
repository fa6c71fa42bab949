"""Every field of a config.json that could change the result: logits equal `transformers`, or it is refused.

For each family, each field is set to what other models have there, and each field of the family is left out.
The reference reads the same file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from model_builders import family_config
from model_logits import difference, make_reference, text

from stoker_runtime.errors import ModelError

# One family for each architecture, with a window where there can be one.
FAMILIES = (
    *("llama", "mistral-window", "qwen2", "qwen3", "smollm3", "phi3", "granite", "olmo2", "mixtral"),
    *("qwen3-moe", "gemma2", "gemma3"),
)
# Fields that a family has not, and ropes, are read with the same code for all: these try them, the rest do
# with `long`.
WHOLE = ("llama", "phi3", "gemma3")
_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.8, "mscale_all_dim": 0.5},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7},
    {"rope_type": "yarn", "factor": 4.0, "truncate": None, "original_max_position_embeddings": 64},
    _LLAMA3,
    {**_LLAMA3, "low_freq_factor": 8.0},
    {
        "rope_type": "longrope",
        "short_factor": [1.5 + i for i in range(8)],
        "long_factor": [9.0] * 8,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    {"type": "su", "short_factor": [1.5] * 8, "long_factor": [3.0] * 8},
    {"type": "mrope", "mrope_section": [2, 3, 3]},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"rope_type": "default", "rope_theta": 100.0},
)
_ROPES_BY_TYPE: tuple[dict[str, Any], ...] = (
    {"full_attention": _ROPES[0], "sliding_attention": {"rope_type": "default"}},
    {"full_attention": {"rope_type": "default"}, "sliding_attention": _ROPES[0]},
    {"full_attention": {"rope_type": "yarn", "factor": 4.0, "truncate": False}, "sliding_attention": None},
    {"full_attention": {"rope_type": "yarn", "factor": 4.0}},
    {
        "full_attention": {"rope_type": "default"},
        "sliding_attention": {
            "rope_type": "longrope",
            "short_factor": [1.5] * 16,
            "long_factor": [3.0] * 16,
            "original_max_position_embeddings": 64,
        },
    },
)
_ALTERNATING = ["sliding_attention", "full_attention"]
_CHANGES: tuple[dict[str, Any], ...] = (
    *({name: True} for name in ("attention_bias", "mlp_bias", "qkv_bias", "use_bias", "use_qk_norm")),
    *({name: False} for name in ("use_qk_norm", "is_causal", "norm_topk_prob", "tie_word_embeddings")),
    *({name: None} for name in ("is_causal", "layer_types", "rope_parameters", "mlp_only_layers")),
    *({name: True} for name in ("use_bidirectional_attention", "norm_topk_prob", "tie_word_embeddings")),
    *({"hidden_act": name} for name in ("gelu", "relu", "gelu_pytorch_tanh", "swish", "silu")),
    *({"hidden_activation": name} for name in ("gelu", "gelu_pytorch_tanh", "silu")),
    *({"rms_norm_eps": 1e-2}, {"rope_theta": 100.0}, {"rope_theta": 100}, {"rope_local_base_freq": 50.0}),
    *({"partial_rotary_factor": 0.5}, {"attention_multiplier": 0.3}, {"logits_scaling": 3.0}),
    *({"residual_multiplier": 0.3}, {"embedding_multiplier": 2.5}, {"query_pre_attn_scalar": 9}),
    *({name: 1.5} for name in ("attn_logit_softcapping", "final_logit_softcapping")),
    *({name: None} for name in ("attn_logit_softcapping", "final_logit_softcapping", "head_dim")),
    *({"head_dim": size} for size in (16, 48)),
    *({"num_key_value_heads": count} for count in (1, 4, None)),
    *({"sliding_window": size} for size in (1, 7, 256, 300, None)),
    *({"sliding_window": 7, "use_sliding_window": value} for value in (True, False)),
    *({"sliding_window": 7, "use_sliding_window": True, "max_window_layers": first} for first in (0, 1, 2)),
    *({"sliding_window": 7, "sliding_window_pattern": every} for every in (1, 2)),
    {"layer_types": _ALTERNATING},
    {"sliding_window": 7, "layer_types": _ALTERNATING},
    {"sliding_window": 7, "layer_types": _ALTERNATING, "use_sliding_window": True},
    {"sliding_window": 7, "layer_types": _ALTERNATING, "use_sliding_window": False},
    *({"sliding_window": 7, "layer_types": [kind] * 2} for kind in _ALTERNATING),
    {"sliding_window": 7, "use_sliding_window": True, "no_rope_layers": [1, 0]},
    *({"no_rope_layers": layers} for layers in ([0, 1], [0, 0], [1, 1])),
    *({"no_rope_layer_interval": every} for every in (1, 2)),
    *({"num_experts_per_tok": 1}, {"mlp_only_layers": [1]}, {"decoder_sparse_step": 1}),
    {"attention_dropout": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "router_jitter_noise": 0.5},
    {"pretraining_tp": 2, "output_router_logits": True, "initializer_range": 1.0, "use_cache": False},
    *({"rope_scaling": rope} for rope in _ROPES),
    *({"rope_parameters": {"rope_theta": 1000.0, **rope}} for rope in _ROPES),
    {"rope_scaling": _LLAMA3, "original_max_position_embeddings": 32},
    *({"rope_scaling": rope, "original_max_position_embeddings": 32} for rope in _ROPES[3:5]),
    *({"rope_parameters": rope} for rope in _ROPES_BY_TYPE),
    *({"rope_parameters": rope, "original_max_position_embeddings": 32} for rope in _ROPES_BY_TYPE),
    *({"model_type": name, "sliding_window": 7} for name in ("llama", "mistral", "mixtral", "qwen2")),
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}, "rope_scaling": _ROPES[0]},
)


def changed(base: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A file with these fields, without what says the same in another way."""
    rest = dict(base)
    if {"rope_scaling", "rope_theta"} & set(fields):
        rest["rope_theta"] = (rest.pop("rope_parameters") or {}).get("rope_theta", 10000.0)
    if fields.keys() & {"sliding_window", "use_sliding_window", "no_rope_layers", "no_rope_layer_interval"}:
        rest.pop("layer_types", None)
    if "no_rope_layer_interval" in fields:
        rest.pop("no_rope_layers", None)
    return {**rest, **fields}


def reference(folder: Path, raw: Mapping[str, Any]) -> Any:
    """The model that `transformers` makes of a file, None if it takes none such."""
    try:
        return make_reference(folder, raw)
    except Exception:  # it raises whatever its internals happen to
        return None


def complaint(folder: Path, model: Any) -> str | None:
    """Why our logits are not those of the model; None if they are, or if the file is refused."""
    try:
        return difference(folder, model, text(model.config.vocab_size))
    except ModelError:
        return None


def file_of(family: str) -> dict[str, Any]:
    model_class, _, config = family_config(family)
    return {**config.to_dict(), "architectures": [model_class]}


@pytest.mark.parametrize(
    "family",
    [family if family in WHOLE else pytest.param(family, marks=pytest.mark.long) for family in FAMILIES],
)
def test_a_field_is_computed_as_transformers_does_or_refused(family: str, tmp_path: Path) -> None:
    check_fields(file_of(family), _CHANGES, tmp_path)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WHOLE])
def test_a_field_that_the_family_has_is_computed_as_transformers_does_or_refused(
    family: str, tmp_path: Path
) -> None:
    base = file_of(family)
    own = base.keys() - {"rope_parameters", "rope_scaling"}
    check_fields(base, [fields for fields in _CHANGES if fields.keys() <= own], tmp_path)


def check_fields(base: dict[str, Any], changes: Sequence[dict[str, Any]], tmp_path: Path) -> None:
    """Try a file with each of the changes, and without each of its fields."""
    files = {json.dumps(fields): changed(base, fields) for fields in changes}
    files |= {f"without {name}": {key: base[key] for key in base if key != name} for name in base}
    found, num_read = {}, 0
    for number, (what, raw) in enumerate(files.items()):
        folder = tmp_path / str(number)
        model = reference(folder, raw)
        num_read += model is not None
        if model is not None and (why := complaint(folder, model)):
            found[what] = why
        shutil.rmtree(folder)
    assert not found, "\n".join(f"{what}: {why}" for what, why in found.items())
    assert num_read > len(files) / 2
