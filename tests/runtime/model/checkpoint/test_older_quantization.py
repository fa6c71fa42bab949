"""Checkpoints that say in a file beside config.json how their weights are quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_builders import write_model

from loadgen.checkpoints import Awq, Gptq, Layout, write_quantized
from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import Fp8Storage
from stoker_runtime.model.checkpoint.config_json import read_config_json

FP8_CONFIG = {"quant_method": "fp8"}
OLDER_FILES = [
    pytest.param("quantize_config.json", Gptq(), {"sym": False, "damp_percent": 0.01}, id="gptq"),
    pytest.param("quant_config.json", Awq(), {"zero_point": True, "version": "GEMM"}, id="awq"),
]


@pytest.mark.parametrize(("name", "layout", "further"), OLDER_FILES)
def test_an_older_checkpoint_says_in_a_file_of_its_own_how_it_is_quantized(
    name: str, layout: Layout, further: dict[str, Any], tmp_path: Path
) -> None:
    write_model(tmp_path / "plain", "llama")
    write_quantized(tmp_path / "plain", tmp_path / "small", layout)
    path = tmp_path / "small" / "config.json"
    config = json.loads(path.read_text())
    wanted = read_config_json(path).storage
    said = config.pop("quantization_config")
    assert wanted is not None
    path.write_text(json.dumps(config))
    beside = path.parent / name
    beside.write_text(json.dumps({**{key: said[key] for key in said if key != "quant_method"}, **further}))
    assert read_config_json(path).storage == wanted
    # what config.json says itself counts more
    path.write_text(json.dumps({**config, "quantization_config": FP8_CONFIG}))
    assert read_config_json(path).storage == Fp8Storage(None, rounds_inputs=True)


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "InvalidModel"), ("[]", "InvalidModel"), ('{"bits": 3}', "UnsupportedModel")]
)
def test_an_older_file_that_cannot_be_meant_is_refused_by_its_name(
    text: str, reason: str, tmp_path: Path
) -> None:
    write_model(tmp_path, "llama")
    (tmp_path / "quantize_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"quantize_config\.json") as caught:
        read_config_json(tmp_path / "config.json")
    assert caught.value.reason == reason
