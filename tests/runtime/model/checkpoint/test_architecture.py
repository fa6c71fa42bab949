"""What config.json and GGUF metadata say about a model, and every field that is refused by name."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_builders import FAMILIES, make_model, write_gguf

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import read_gguf
from stoker_runtime.model.architecture import (
    ExpertSettings,
    LinearScaling,
    Llama3Scaling,
    RopeSettings,
    Scales,
)
from stoker_runtime.model.checkpoint.config_json import architecture_from_config, read_config_json
from stoker_runtime.model.checkpoint.gguf_metadata import architecture_from_gguf
from stoker_runtime.model.rope import inverse_frequencies


def config(**fields: Any) -> dict[str, Any]:
    """A Llama config.json as older versions of `transformers` wrote it; None removes a field."""
    base: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
    return {key: value for key, value in {**base, **fields}.items() if value is not None}


LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def test_older_files_keep_theta_and_scaling_apart() -> None:
    read = architecture_from_config(config(rope_scaling=LLAMA3_SCALING))
    assert read.ropes == (RopeSettings(500000.0, 16, Llama3Scaling(32.0, 1.0, 4.0, 128)),)
    assert read.stored_dtype == "bfloat16"


def test_newer_files_keep_theta_and_scaling_together() -> None:
    rope = {**LLAMA3_SCALING, "rope_theta": 10000.0}
    read = architecture_from_config(
        config(rope_theta=None, rope_parameters=rope, torch_dtype=None, dtype="float16")
    )
    assert read.ropes == (RopeSettings(10000.0, 16, Llama3Scaling(32.0, 1.0, 4.0, 128)),)
    assert read.stored_dtype == "float16"


def test_missing_fields_have_the_defaults_of_transformers() -> None:
    read = architecture_from_config(
        config(num_key_value_heads=None, rope_theta=None, rms_norm_eps=None, hidden_act=None)
    )
    assert (read.num_kv_heads, read.head_dim, read.rms_norm_eps) == (4, 16, 1e-6)
    assert read.ropes == (RopeSettings(10000.0, 16),)
    assert not read.tied_embeddings


@pytest.mark.parametrize("family", FAMILIES)
def test_frequencies_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    model.config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**saved, "architectures": [type(model).__name__]}))
    read = read_config_json(tmp_path / "config.json")
    text_part = getattr(model.model, "language_model", model.model)
    theirs = dict(text_part.rotary_emb.named_buffers())
    wanted = [theirs[key] for key in theirs if key.endswith("inv_freq") and "original" not in key]
    ours = [inverse_frequencies(settings) for settings in read.ropes]
    assert len(ours) == len(wanted)
    for frequencies in wanted:
        assert any(torch.allclose(frequencies, own, rtol=1e-6, atol=0.0) for own in ours)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        pytest.param({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel", id="another-architecture"),
        pytest.param({"architectures": None, "model_type": "mamba"}, "mamba", id="only-a-model-type"),
        pytest.param({"hidden_act": "gelu"}, "hidden_act = 'gelu'", id="activation"),
        pytest.param({"attention_bias": True}, "attention_bias", id="attention-bias"),
        pytest.param({"mlp_bias": True}, "mlp_bias", id="mlp-bias"),
        pytest.param({"use_bidirectional_attention": True}, "use_bidirectional_attention", id="both-ways"),
        pytest.param(
            {"architectures": ["Gemma2ForCausalLM"]}, "hidden_act = 'silu'", id="another-activation-in-gemma"
        ),
        pytest.param({"rope_scaling": {"type": "mrope", "factor": 4.0}}, "'mrope'", id="rope-of-images"),
        pytest.param({"rope_scaling": {"type": "su"}}, "'su'", id="spelling-of-phi-elsewhere"),
        pytest.param({"quantization_config": {"quant_method": "hqq"}}, "'hqq'", id="quantized"),
        pytest.param(
            {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention", id="layers"
        ),
        pytest.param(
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["chunked_attention"] * 2},
            "chunked_attention",
            id="layers-of-an-unknown-type",
        ),
        pytest.param(
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["sliding_attention"] * 2},
            "sliding_attention",
            id="layers-without-a-window",
        ),
        pytest.param({"final_logit_softcapping": 30.0}, "final_logit_softcapping", id="soft-cap"),
        pytest.param({"is_causal": False}, "is_causal = False", id="not-causal"),
        pytest.param({"model_type": "mistral"}, "model_type = 'mistral'", id="model-type-of-another-family"),
        pytest.param(
            {
                "architectures": ["Gemma3ForCausalLM"],
                "hidden_act": None,
                "attn_logit_softcapping": 30.0,
            },
            "attn_logit_softcapping",
            id="soft-cap-that-gemma3-ignores",
        ),
        pytest.param(
            {
                "architectures": ["Gemma3ForCausalLM"],
                "hidden_act": None,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False},
            },
            "truncate = False",
            id="truncate-that-gemma3-ignores",
        ),
        pytest.param({"partial_rotary_factor": 0.5}, "partial_rotary_factor", id="rotated-in-part"),
        pytest.param(
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
            id="rotated-in-part-newer",
        ),
        pytest.param(
            {"rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": None}},
            "rope_parameters for full_attention",
            id="rope-by-type-outside-gemma",
        ),
        pytest.param(
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 4.0}},
            "rope_scaling beside other rope_parameters",
            id="two-ropes",
        ),
        pytest.param(
            {
                "architectures": ["SmolLM3ForCausalLM"],
                "sliding_window": 7,
                "use_sliding_window": False,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            "use_sliding_window = false",
            id="windows-switched-off-and-on",
        ),
        pytest.param({"residual_multiplier": 0.5}, "residual_multiplier", id="scales-of-granite-elsewhere"),
        pytest.param(
            {"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, "attention_bias", id="qwen3-bias"
        ),
    ],
)
def test_what_changes_results_is_refused_by_name(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError) as caught:
        architecture_from_config(config(**fields))
    assert caught.value.reason == "UnsupportedModel"
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 256}, id="qwen2-window-not-in-use"
        ),
        pytest.param(
            {"architectures": ["MistralForCausalLM"], "sliding_window": 512}, id="window-as-long-as-all"
        ),
        pytest.param(
            {"attention_dropout": 0.1, "pretraining_tp": 2, "is_llama_config": True}, id="no-effect"
        ),
        pytest.param({"layer_types": ["full_attention", "full_attention"]}, id="full-attention-layers"),
        pytest.param({"rope_scaling": {"rope_type": "default"}}, id="rope-scaling-that-does-nothing"),
    ],
)
def test_what_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    assert architecture_from_config(config(**fields)).windows == (None,)


@pytest.mark.parametrize(
    ("name", "fields", "windows"),
    [
        pytest.param("Mistral", {}, [256, 256], id="mistral"),
        pytest.param(
            "Mistral",
            {"layer_types": ["full_attention", "sliding_attention"]},
            [None, 256],
            id="mistral-by-layer",
        ),
        pytest.param("Phi3", {}, [256, 256], id="phi3"),
        pytest.param("Qwen2", {"use_sliding_window": True}, [None, None], id="qwen2-first-28-have-none"),
        pytest.param("Qwen2", {"use_sliding_window": True, "max_window_layers": 1}, [None, 256], id="qwen2"),
        pytest.param(
            "Qwen3",
            {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
            [256, None],
            id="layer-types-win",
        ),
        pytest.param(
            "SmolLM3", {"use_sliding_window": True, "no_rope_layers": [1, 0]}, [None, 256], id="ropeless"
        ),
        pytest.param("SmolLM3", {}, [None, None], id="smollm3-does-not-use-it"),
        pytest.param("Olmo2", {}, [None, None], id="olmo2-has-none"),
        pytest.param("Gemma2", {"hidden_act": "gelu_pytorch_tanh"}, [256, None], id="gemma2-every-second"),
        pytest.param(
            "Gemma3",
            {"hidden_act": "gelu_pytorch_tanh", "num_hidden_layers": 7},
            [256] * 5 + [None, 256],
            id="gemma3-all-but-every-sixth",
        ),
    ],
)
def test_windows_are_for_the_layers_that_the_family_says(
    name: str, fields: dict[str, Any], windows: list[int | None]
) -> None:
    read = architecture_from_config(
        config(architectures=[f"{name}ForCausalLM"], sliding_window=256, **fields)
    )
    assert [layer.window for layer in read.layers] == windows


def test_smollm3_leaves_out_every_fourth_rope_unless_it_says_which() -> None:
    said = config(architectures=["SmolLM3ForCausalLM"], num_hidden_layers=5)
    by_default = architecture_from_config(said)
    assert [layer.rope is not None for layer in by_default.layers] == [True, True, True, False, True]
    listed = architecture_from_config({**said, "no_rope_layers": [0, 1, 1, 1, 0]})
    assert [layer.rope is not None for layer in listed.layers] == [False, True, True, True, False]


def test_a_part_of_each_head_may_be_rotated() -> None:
    phi = {"architectures": ["Phi3ForCausalLM"]}
    older = architecture_from_config(config(**phi, partial_rotary_factor=0.5))
    rope = {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5}
    newer = architecture_from_config(config(**phi, rope_parameters=rope))
    assert older.ropes == newer.ropes == (RopeSettings(500000.0, rotary_dim=8),)


def test_gemma3_rotates_layers_with_a_window_in_their_own_way() -> None:
    gemma = {
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_act": None,
        "num_hidden_layers": 6,
        "head_dim": 16,
    }
    scaling = {"rope_type": "linear", "factor": 8.0}
    older = config(
        **gemma, sliding_window=256, rope_theta=1e6, rope_local_base_freq=5000.0, rope_scaling=scaling
    )
    by_type = {
        "full_attention": {**scaling, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    }
    newer = config(**gemma, sliding_window=256, rope_theta=None, rope_parameters=by_type)
    local, usual = RopeSettings(5000.0, 16), RopeSettings(1e6, 16, LinearScaling(8.0))
    for said in (older, newer):
        assert [layer.rope for layer in architecture_from_config(said).layers] == [local] * 5 + [usual]


def test_gemma2_has_caps_and_gemma3_has_none() -> None:
    gemma = {"hidden_act": None, "query_pre_attn_scalar": 64, "hidden_size": 256}
    second, third = (
        architecture_from_config(config(architectures=[f"Gemma{n}ForCausalLM"], **gemma)).scales
        for n in (2, 3)
    )
    assert second == Scales(
        embedding=16.0, rounds_embedding=True, attention=0.125, attention_cap=50.0, logits_cap=30.0
    )
    assert third == Scales(embedding=16.0, rounds_embedding=True, attention=0.125)


MIXTRAL = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 2}
QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
}


def test_mixtures_say_which_layers_have_how_many_experts() -> None:
    mixtral = architecture_from_config(config(**MIXTRAL))
    assert mixtral.experts == ExpertSettings(8, 2, intermediate_size=96, normalizes_weights=True)
    assert all(layer.is_sparse for layer in mixtral.layers)
    qwen = architecture_from_config(
        config(**QWEN3_MOE, num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[3])
    )
    assert qwen.experts == ExpertSettings(16, 4, intermediate_size=32, normalizes_weights=False)
    assert [layer.is_sparse for layer in qwen.layers] == [False, True, False, False]
    assert architecture_from_config(config()).experts is None


def test_granite_has_scales_and_others_have_none() -> None:
    scales = {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.015625,
        "logits_scaling": 8.0,
    }
    read = architecture_from_config(config(architectures=["GraniteForCausalLM"], **scales))
    assert read.scales == Scales(embedding=12.0, residual=0.22, attention=0.015625, logits=8.0)
    assert architecture_from_config(config()).scales == Scales()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        pytest.param({"hidden_size": None}, "hidden_size", id="missing"),
        pytest.param({"num_hidden_layers": "two"}, "num_hidden_layers", id="not-a-number"),
        pytest.param({"vocab_size": 0}, "vocab_size", id="zero"),
        pytest.param({"num_attention_heads": 0}, "num_heads", id="no-heads"),
        pytest.param({"num_key_value_heads": 3}, "4 heads", id="uneven-groups"),
        pytest.param({"head_dim": 15}, "head_dim", id="odd-head"),
        pytest.param({"layer_types": ["full_attention"]}, "layer_types", id="too-few-layer-types"),
        pytest.param(
            {
                "architectures": ["MixtralForCausalLM"],
                "num_local_experts": 2,
                "num_experts_per_tok": 3,
            },
            "3 of 2 experts",
            id="too-few-experts",
        ),
        pytest.param(
            {
                "architectures": ["Qwen3MoeForCausalLM"],
                "num_experts": 2,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 8,
                "decoder_sparse_step": 0,
            },
            "decoder_sparse_step",
            id="no-sparse-step",
        ),
        pytest.param(
            {"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1]},
            "no_rope_layers",
            id="too-few-ropes",
        ),
        pytest.param(
            {"architectures": ["SmolLM3ForCausalLM"], "no_rope_layer_interval": 0},
            "no_rope_layer_interval",
            id="no-interval",
        ),
        pytest.param(
            {"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window", id="no-window"
        ),
        pytest.param(
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor", id="half-llama3"
        ),
        pytest.param(
            {"rope_scaling": {**LLAMA3_SCALING, "high_freq_factor": 1.0}},
            "high_freq_factor of 1.0",
            id="llama3-borders-swapped",
        ),
        pytest.param(
            {"dual_chunk_attention_config": {"local_size": 8}}, "chunk_size", id="chunks-without-a-size"
        ),
        pytest.param(
            {"dual_chunk_attention_config": {"chunk_size": 8, "local_size": 8}},
            "max_position is 0",
            id="chunks-without-room",
        ),
        pytest.param({"rms_norm_eps": "1e-5"}, "rms_norm_eps", id="number-as-text"),
        pytest.param({"rms_norm_eps": float("nan")}, "rms_norm_eps", id="nan"),
        pytest.param({"rope_theta": -1}, "rope_theta", id="negative-theta"),
        pytest.param({"rope_parameters": []}, "rope_parameters", id="rope-as-list"),
        pytest.param(
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "rope_theta": 1.0}},
            "rope_theta",
            id="yarn-theta",
        ),
        pytest.param({"rope_scaling": {"type": "yarn"}}, "factor", id="yarn-without-a-factor"),
        pytest.param({"rope_scaling": {"type": "longrope"}}, "short_factor", id="longrope-without-divisors"),
        pytest.param(
            {"rope_scaling": {"type": "longrope", "short_factor": [1, 0] * 4}}, "short_factor", id="divisor-0"
        ),
        pytest.param({"rope_scaling": "linear"}, "rope_scaling", id="rope-as-text"),
        pytest.param(
            {
                "architectures": ["Gemma3ForCausalLM"],
                "hidden_act": None,
                "rope_parameters": {"full_attention": 1},
            },
            "full_attention",
            id="rope-by-type-as-number",
        ),
        pytest.param({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor", id="factor-as-text"),
        pytest.param({"architectures": "LlamaForCausalLM"}, "architectures", id="architectures-as-text"),
        pytest.param({"tie_word_embeddings": "true"}, "tie_word_embeddings", id="flag-as-text"),
        pytest.param({"torch_dtype": 16}, "dtype", id="dtype-as-number"),
        pytest.param({"partial_rotary_factor": "half"}, "partial_rotary_factor", id="part-as-text"),
        pytest.param({"hidden_size": 2**70}, "hidden_size", id="beyond-any-size"),
        pytest.param({"quantization_config": "fp8"}, "quantization_config", id="quantized-by-name"),
    ],
)
def test_broken_configurations_are_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError, match=word) as caught:
        architecture_from_config(config(**fields))
    assert caught.value.reason == "InvalidModel"


def test_a_null_where_a_number_belongs_is_refused() -> None:
    with pytest.raises(ModelError, match="rms_norm_eps is None"):
        architecture_from_config({**config(), "rms_norm_eps": None})


_FIELDS = (
    *("architectures", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "hidden_act"),
    *("tie_word_embeddings", "torch_dtype", "attention_bias", "layer_types", "sliding_window"),
    *("use_sliding_window", "partial_rotary_factor", "query_pre_attn_scalar", "attn_logit_softcapping"),
    *("mlp_only_layers", "num_experts", "no_rope_layers", "max_window_layers", "quantization_config"),
    *("embedding_multiplier", "norm_topk_prob", "rope_local_base_freq", "decoder_sparse_step"),
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(["", "linear", "x"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["rope_type", "factor", "full_attention", "rope_theta"]), inner, max_size=3
        )
    ),
    max_leaves=4,
)
_ARCHITECTURES = (
    "LlamaForCausalLM",
    "GraniteForCausalLM",
    "Gemma3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "SmolLM3ForCausalLM",
)


@given(
    name=st.sampled_from(_ARCHITECTURES),
    fields=st.dictionaries(st.sampled_from(_FIELDS), _JSON, min_size=1, max_size=3),
)
def test_whatever_a_field_holds_it_is_read_or_refused(name: str, fields: dict[str, Any]) -> None:
    base = {**config(**QWEN3_MOE, hidden_act=None), "architectures": [name], "head_dim": 16}
    with contextlib.suppress(ModelError):
        architecture_from_config({**base, **fields})


@pytest.mark.parametrize(
    ("fields", "longest"),
    [
        pytest.param({}, 512, id="none"),
        pytest.param({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 512, id="dynamic"),
        pytest.param({"rope_scaling": {"type": "linear", "factor": 4.0}}, 512, id="linear"),
        pytest.param({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 2048, id="yarn"),
        pytest.param(
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 100,
                }
            },
            512,
            id="yarn-counted-in",
        ),
        pytest.param(
            {
                "architectures": ["Phi3ForCausalLM"],
                "original_max_position_embeddings": 128,
                "rope_scaling": {"type": "su", "short_factor": [2.0] * 8, "long_factor": [3.0] * 8},
            },
            128,
            id="longrope",
        ),
        pytest.param(
            {"dual_chunk_attention_config": {"chunk_size": 256, "local_size": 8}}, 248, id="first-chunk"
        ),
        pytest.param(
            {
                "dual_chunk_attention_config": {"chunk_size": 256, "local_size": 8},
                "rope_scaling": {"type": "yarn", "factor": 4.0},
            },
            248,
            id="first-chunk-however-far-it-rotates",
        ),
    ],
)
def test_the_longest_context_is_what_the_rotation_is_for(fields: dict[str, Any], longest: int) -> None:
    assert architecture_from_config(config(**fields)).max_position == longest


def test_a_window_within_an_extended_context_is_one() -> None:
    mistral = {"architectures": ["MistralForCausalLM"], "sliding_window": 600}
    yarn = {"rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert architecture_from_config(config(**mistral)).windows == (None,)
    assert architecture_from_config(config(**mistral, **yarn)).windows == (600,)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_config_json_that_cannot_be_read_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("metadata", "word"),
    [
        pytest.param({"rope__scaling__type": "longrope"}, "'longrope'", id="rope-scaling"),
        pytest.param({"expert_count": 8}, "expert_count = 8", id="experts"),
        pytest.param({"attention__sliding_window": 64}, "sliding_window = 64", id="sliding-window"),
        pytest.param({"rope__dimension_count": 8}, "rope.dimension_count = 8", id="partial-rotary"),
    ],
)
def test_gguf_metadata_that_changes_results_is_refused_by_name(
    metadata: dict[str, Any], word: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", make_model("qwen3"), "qwen3", **metadata)
    with pytest.raises(ModelError) as caught:
        architecture_from_gguf(read_gguf(tmp_path / "m.gguf"))
    assert caught.value.reason == "UnsupportedModel"
    assert word in str(caught.value)


def test_gguf_architecture_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", make_model("llama"), "minicpm")
    with pytest.raises(ModelError, match="minicpm") as caught:
        architecture_from_gguf(read_gguf(tmp_path / "m.gguf"))
    assert caught.value.reason == "UnsupportedModel"


def test_gguf_without_embeddings_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", make_model("qwen3"), "qwen3", extra={"token_embd.weight": None})
    with pytest.raises(ModelError, match=r"token_embd\.weight"):
        architecture_from_gguf(read_gguf(tmp_path / "m.gguf"))
