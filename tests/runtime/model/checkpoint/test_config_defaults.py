"""A field that a config.json leaves out means what `transformers` takes for it, in nested ones as well."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from typing import Any

import pytest
import transformers
from model_builders import FAMILIES, WRAPPED_FAMILIES, family_config

from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import LinearScaling, RopeSettings
from stoker_runtime.model.checkpoint.config_json import architecture_from_config

TEXT_FAMILIES = tuple(
    {family_config(family)[0]: family for family in FAMILIES if family not in WRAPPED_FAMILIES}.values()
)


@pytest.mark.parametrize("is_sliding", [False, True])
@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_field_that_is_left_out_means_what_transformers_takes_for_it(family: str, is_sliding: bool) -> None:
    """Of files with the sizes of the first model of their kind, where windows are shorter than contexts."""
    model_class, config_class, _ = family_config(family)
    known = getattr(transformers, config_class)
    switch = {"use_sliding_window": True} if is_sliding and hasattr(known(), "use_sliding_window") else {}
    base = {**known(**switch).to_dict(), "architectures": [model_class]}
    num_read = 0
    for left_out in base.keys() - {"architectures", "dtype"}:
        shapes_layers = left_out in ("num_hidden_layers", "sliding_window")
        rest = {
            key: base[key] for key in base if key != left_out and not (shapes_layers and key == "layer_types")
        }
        filled = {**known.from_dict(copy.deepcopy(rest)).to_dict(), "architectures": [model_class]}
        with contextlib.suppress(ModelError):  # most sizes have to be there
            assert architecture_from_config(rest) == architecture_from_config(filled), left_out
            num_read += 1
    assert num_read > len(base) / 2


WRAPPED = {
    "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", "Gemma3Config", "Gemma3TextConfig"),
    "Mistral3ForConditionalGeneration": ("MistralForCausalLM", "Mistral3Config", "MistralConfig"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_nested_configuration_may_leave_out_anything(name: str) -> None:
    text_part, config_class, text_class = WRAPPED[name]
    base = getattr(transformers, text_class)().to_dict()
    for left_out in base:
        text = {key: base[key] for key in base if key != left_out}
        whole = getattr(transformers, config_class)(text_config=copy.deepcopy(text))
        filled = {
            **whole.text_config.to_dict(),
            "architectures": [text_part],
            "tie_word_embeddings": whole.tie_word_embeddings,
        }
        read = architecture_from_config({"architectures": [name], "text_config": text})
        assert replace(read, wrapper=None) == architecture_from_config(filled), left_out
        assert read.wrapper == name


def test_the_text_part_of_gemma_3_4b_is_read_as_it_is_published() -> None:
    """Whose text_config says little: the rest is as in the first Gemma 3."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "text_config": text,
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }
    read = architecture_from_config(config)
    sizes = (read.vocab_size, read.num_heads, read.num_kv_heads, read.head_dim, read.max_position)
    assert sizes == (262_208, 8, 4, 256, 131_072)
    assert (read.tied_embeddings, read.stored_dtype, read.rms_norm_eps) == (True, "bfloat16", 1e-6)
    assert (read.scales.attention, read.scales.embedding) == (256**-0.5, 2560**0.5)
    local, usual = RopeSettings(10000.0, 256), RopeSettings(1e6, 256, LinearScaling(8.0))
    kinds = [(layer.rope, layer.window) for layer in read.layers]
    assert kinds == ([(local, 1024)] * 5 + [(usual, None)]) * 5 + [(local, 1024)] * 4


@pytest.mark.parametrize(
    ("config", "reason", "word"),
    [
        pytest.param({}, "InvalidModel", "text_config", id="no-text-part"),
        pytest.param({"text_config": "gemma"}, "InvalidModel", "text_config", id="text-part-by-name"),
        pytest.param(
            {"text_config": {"model_type": "ministral3"}},
            "UnsupportedModel",
            "'ministral3'",
            id="another-family",
        ),
        pytest.param(
            {"text_config": {"use_bidirectional_attention": True}},
            "UnsupportedModel",
            "use_bidirectional_attention",
            id="both-ways",
        ),
        pytest.param(
            {"text_config": {"vocab_size": 160}, "is_causal": False},
            "UnsupportedModel",
            "is_causal = False",
            id="not-causal",
        ),
    ],
)
@pytest.mark.parametrize("name", WRAPPED)
def test_a_text_part_that_cannot_be_computed_is_refused(
    name: str, config: dict[str, Any], reason: str, word: str
) -> None:
    with pytest.raises(ModelError, match=word) as caught:
        architecture_from_config({"architectures": [name], **config})
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("name", "model_type", "field", "value"),
    [
        ("Mistral3ForConditionalGeneration", "mistral", "layer_types", ["full_attention"] * 32),
        ("Gemma3ForConditionalGeneration", "gemma3_text", "final_logit_softcapping", 30.0),
    ],
)
def test_a_field_that_transformers_heeds_in_the_text_model_alone_is_refused(
    name: str, model_type: str, field: str, value: Any
) -> None:
    config = {"architectures": [name], "text_config": {"model_type": model_type, field: value}}
    with pytest.raises(ModelError, match=rf"text_config\.{field}") as caught:
        architecture_from_config(config)
    assert caught.value.reason == "UnsupportedModel"
    architecture_from_config({**config, "text_config": {"model_type": model_type, field: None}})
