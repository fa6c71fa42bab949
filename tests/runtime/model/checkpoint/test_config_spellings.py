"""config.json as fine-tunes and old repositories have it: read as meant, or refused with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from model_builders import Reference, make_engine, make_model, run_to_end, write_model
from runtime_builders import make_request
from safetensors.torch import load_file, save_file

from stoker_runtime.errors import ModelError
from stoker_runtime.model.checkpoint.config_json import architecture_from_config, read_config_json
from stoker_runtime.model.checkpoint.weights import SafetensorsSource

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
USUAL = architecture_from_config(LLAMA)


@pytest.mark.parametrize(
    "fields",
    [
        {"architectures": None},
        {"architectures": []},
        {"architectures": ["LLaMAForCausalLM"]},  # as the first conversions spelt it
        {"architectures": ["LlamaModel"]},
        {"architectures": ["LlavaLlamaForCausalLM", "LlamaForCausalLM"]},
        {"architectures": ["LlamaForCausalLM"], "model_type": None},
        {"auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}},
        {"hidden_size": 64.0, "num_attention_heads": 4.0, "max_position_embeddings": 256.0},
        {"rope_scaling": {}, "rope_theta": None},
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 10000}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rope_scaling": None},
        {"attention_bias": None, "mlp_bias": None, "head_dim": None, "sliding_window": None},
        {"quantization_config": None},
        {"quantization_config": {}},
        {
            "quantization_config": {
                "quant_method": "bitsandbytes",
                "load_in_4bit": False,
                "load_in_8bit": False,
            }
        },
        {"quantization": None},
        {"eos_token_id": [1, 2], "pad_token_id": -1, "bos_token_id": None, "unsloth_fixed": True},
        {"_name_or_path": "/x", "pretraining_tp": 1, "use_cache": False, "transformers_version": "4.31"},
        {"time_step_limit": float("inf")},
    ],
)
def test_fields_that_change_nothing_are_read_as_meant(fields: dict[str, Any]) -> None:
    assert architecture_from_config({**LLAMA, **fields}) == USUAL


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification .*another"),
        (
            {"architectures": ["MyForCausalLM"], "auto_map": {"AutoConfig": "x.Y"}},
            "architecture MyForCausalLM",
        ),
        ({"architectures": ["FooForCausalLM"], "model_type": "foo"}, "architecture FooForCausalLM"),
        ({"architectures": None, "model_type": None}, "architecture None"),
        ({"hidden_size": 64.5}, "hidden_size is 64.5"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": float("nan")}, "hidden_size is nan"),
        *(
            ({"quantization_config": {"quant_method": method}}, f"'{method}' .*; use the original checkpoint")
            for method in ("exl2", "aqlm", "hqq", "torchao", "mxfp4", "bitnet", "quanto")
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "'bitsandbytes' .*; use the original checkpoint.*or GGUF",
        ),
        ({"quantization_config": {"group_size": 64, "bits": 4}}, "MLX's .*; use the original checkpoint"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX's .*; use the original checkpoint"),
    ],
)
def test_what_means_something_else_is_refused_with_what_to_do(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        architecture_from_config({**LLAMA, **fields})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_config.json", "PEFT adapter .*merge_and_unload"),
        ("params.json", "own layout"),
        ("other.json", "neither config.json nor a .gguf file; download"),
    ],
)
def test_a_folder_without_a_config_says_what_it_is(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=message):
        read_config_json(tmp_path / "config.json")


def test_a_config_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(LLAMA).encode())
    assert read_config_json(tmp_path / "config.json") == USUAL


def test_a_mixtral_has_experts_in_all_layers_whatever_the_file_says_of_dense_ones(tmp_path: Path) -> None:
    """`transformers` reads these fields in Qwen's mixtures only."""
    model = make_model("mixtral")
    write_model(tmp_path, "mixtral")
    config = json.loads((tmp_path / "config.json").read_text())
    usual = architecture_from_config(config)
    odd = architecture_from_config({**config, "mlp_only_layers": [0], "decoder_sparse_step": 2})
    assert odd == usual
    assert all(layer.is_sparse for layer in odd.layers)
    assert model.config.num_hidden_layers == len(odd.layers)


def test_a_model_that_was_saved_without_its_head_is_loaded_as_transformers_does(tmp_path: Path) -> None:
    model = make_model("llama-tied")
    model.model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "embed_tokens.weight" in stored
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaModel"]
    request = make_request([5, 80, 3, 9, 120], max_tokens=8)
    output = run_to_end(make_engine(tmp_path), {0: [request]})[request.request_id]
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert Reference(whole).num_near_ties(request.prompt_token_ids, output) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "pickled weights .*save_pretrained"),
        ("consolidated.00.pth", "convert_llama_weights_to_hf"),
        ("model.onnx", "ONNX export; use the model"),
        ("adapter_model.bin", "PEFT adapter"),
        (None, "the weights are missing"),
    ],
)
def test_weights_in_another_format_are_refused_with_the_way_to_convert(
    name: str | None, message: str, tmp_path: Path
) -> None:
    if name is not None:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=message) as caught, SafetensorsSource(tmp_path):
        pass
    assert caught.value.reason == ("InvalidModel" if name is None else "UnsupportedModel")


def test_integers_in_place_of_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].char()
    save_file(tensors, file)
    with (
        SafetensorsSource(tmp_path) as source,
        pytest.raises(ModelError, match="use the original checkpoint"),
    ):
        source.copy_into("model.norm.weight", tensors["model.norm.weight"].float())
