"""Checkpoints with quantized weights, in the layouts that others write: read rightly or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_builders import Reference, make_engine, run_to_end, write_model
from runtime_builders import make_request
from safetensors.torch import load_file, save_file
from torch import Tensor

from loadgen.checkpoints import Awq, Fp8, Gptq, Layout, rounded, write_quantized
from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import AwqStorage, Fp8Storage, GptqStorage
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.checkpoint.quantization_config import read_storage
from stoker_runtime.model.checkpoint.weights import SafetensorsSource
from stoker_runtime.model.fp8 import FP8
from stoker_runtime.model.quantized.layouts import awq_weight, fp8_weight, gptq_weight
from stoker_runtime.model.quantized.linear import QuantizedLinear
from stoker_runtime.model.quantized.source import QuantizedSource
from stoker_runtime.model.quantized.weight import QuantizedWeight, fp8_rounded, stacked

LAYOUTS: dict[str, Layout] = {
    "gptq": Gptq(group_size=32),
    "gptq-symmetric": Gptq(group_size=16, is_symmetric=True, has_biases=True),
    "gptq-shuffled": Gptq(group_size=32, shuffle_seed=3),
    "gptq-whole-rows": Gptq(group_size=-1),
    "gptq-v2": Gptq(group_size=32, form="gptq_v2"),
    "gptq-partial-group": Gptq(group_size=40),
    "gptq-int8": Gptq(bits=8, group_size=32),
    "awq": Awq(group_size=32),
    "awq-whole-rows": Awq(group_size=-1),
    "fp8-channel": Fp8("channel"),
    "fp8-tensor": Fp8("tensor"),
    "fp8-block": Fp8("block", (32, 48)),
    "transformers-fp8-block": Fp8("block", (24, 32), is_compressed=False),
    "transformers-fp8-tensor": Fp8("tensor", is_compressed=False),
}


def plain(weight: QuantizedWeight) -> Tensor:
    found = torch.full(weight.shape, float("nan"))
    weight.dequantize_into(found)
    return found


def from_codes(weight: Tensor, group_size: int, bits: int, is_symmetric: bool = False) -> Tensor:
    """What a weight is rounded to, without any packing."""
    size = weight.shape[1] if group_size == -1 else group_size
    codes, zeros, scales = rounded(weight, size, bits, is_symmetric)
    groups = torch.arange(weight.shape[1]) // size
    return (codes - zeros[:, groups]) * scales[:, groups]


def word(*nibbles: int) -> int:
    """Eight codes in a word, the first in the lowest bits."""
    value = sum(code << (4 * place) for place, code in enumerate(nibbles))
    return value - 2**32 if value >= 2**31 else value


def test_gptq_codes_lie_along_the_inputs_and_zero_points_are_stored_less_one() -> None:
    # One group of 8 inputs, 8 outputs; output n has the code (n + k) % 16 for input k, and zero point n + 1.
    qweight = [[word(*((n + k) % 16 for k in range(8))) for n in range(8)]]
    tensors = {
        "qweight": torch.tensor(qweight, dtype=torch.int32),
        "qzeros": torch.tensor([[word(*range(8))]], dtype=torch.int32),
        "scales": torch.arange(1, 9).half().unsqueeze(0),
    }
    expected = torch.tensor([[((n + k) % 16 - (n + 1)) * (n + 1.0) for k in range(8)] for n in range(8)])
    found = gptq_weight("m", tensors, (8, 8), GptqStorage(4, None, 1))
    assert torch.equal(plain(found), expected)
    expected += torch.arange(1, 9).unsqueeze(1)  # without the one, zero points are smaller
    assert torch.equal(plain(gptq_weight("m", tensors, (8, 8), GptqStorage(4, None, 0))), expected)


def test_gptq_groups_follow_g_idx() -> None:
    groups = [1, 0, 0, 1, 1, 0, 1, 0]
    tensors = {
        "qweight": torch.full((1, 8), word(*range(8)), dtype=torch.int32),
        "qzeros": torch.zeros(2, 1, dtype=torch.int32),
        "scales": torch.tensor([[1.0] * 8, [100.0] * 8]).half(),
        "g_idx": torch.tensor(groups, dtype=torch.int32),
    }
    expected = torch.tensor([[(k - 1.0) * (1, 100)[group] for k, group in enumerate(groups)]] * 8)
    assert torch.equal(plain(gptq_weight("m", tensors, (8, 8), GptqStorage(4, 4, 1))), expected)


def test_awq_codes_lie_along_the_outputs_in_its_own_order() -> None:
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # the output in each place of a word
    tensors = {
        "qweight": torch.tensor(
            [[word(*((n + k) % 16 for n in order))] for k in range(8)], dtype=torch.int32
        ),
        "qzeros": torch.tensor([[word(*order)]], dtype=torch.int32),
        "scales": torch.arange(1, 9).half().unsqueeze(0),
    }
    expected = torch.tensor([[((n + k) % 16 - n) * (n + 1.0) for k in range(8)] for n in range(8)])
    assert torch.equal(plain(awq_weight("m", tensors, (8, 8), AwqStorage(None))), expected)


def test_fp8_blocks_are_multiplied_with_their_scale() -> None:
    codes = torch.ones(3, 5).to(FP8)
    tensors = {"weight": codes, "weight_scale_inv": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}
    found = fp8_weight("m", tensors, (3, 5), Fp8Storage((2, 2), rounds_inputs=False))
    assert torch.equal(plain(found), torch.tensor([[1.0, 1, 2, 2, 3]] * 2 + [[4.0, 4, 5, 5, 6]]))


@given(
    outputs=st.integers(1, 4).map(lambda n: 8 * n),
    inputs=st.integers(1, 12).map(lambda n: 8 * n),
    bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from([-1, 8, 16, 24, 32]),
    is_symmetric=st.booleans(),
    shuffle_seed=st.none() | st.integers(0, 9),
    form=st.sampled_from(["gptq", "gptq_v2"]),
)
def test_gptq_weights_are_what_was_rounded(
    outputs: int,
    inputs: int,
    bits: int,
    group_size: int,
    is_symmetric: bool,
    shuffle_seed: int | None,
    form: Any,
) -> None:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(inputs))
    layout = Gptq(bits, group_size, is_symmetric, shuffle_seed, form)
    storage = read_storage({"quantization_config": layout.config()})
    assert isinstance(storage, GptqStorage)
    found = gptq_weight("m", layout.module(weight), (outputs, inputs), storage)
    order = torch.arange(inputs)
    if shuffle_seed is not None:
        order = torch.randperm(inputs, generator=torch.Generator().manual_seed(shuffle_seed))
    expected = torch.empty_like(weight)
    expected[:, order] = from_codes(weight[:, order], group_size, bits, is_symmetric)
    assert found.shape == (outputs, inputs)
    assert torch.equal(plain(found), expected)


@given(
    outputs=st.integers(1, 4).map(lambda n: 8 * n),
    groups=st.integers(1, 5),
    group_size=st.sampled_from([8, 16, 32]),
)
def test_awq_weights_are_what_was_rounded(outputs: int, groups: int, group_size: int) -> None:
    weight = torch.randn(outputs, groups * group_size, generator=torch.Generator().manual_seed(groups))
    layout = Awq(group_size)
    found = awq_weight("m", layout.module(weight), (outputs, groups * group_size), AwqStorage(group_size))
    assert torch.equal(plain(found), from_codes(weight, group_size, bits=4))


@given(outputs=st.integers(1, 40), inputs=st.integers(1, 70), zero_row=st.booleans())
def test_weights_rounded_to_fp8_stay_within_its_precision(outputs: int, inputs: int, zero_row: bool) -> None:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(inputs))
    weight[0] *= 0 if zero_row else 1e4
    found = plain(fp8_rounded(weight))
    # four bits of precision, and the smallest steps where values are far below their row's largest
    largest = weight.abs().amax(dim=1, keepdim=True)
    assert bool(((found - weight).abs() <= weight.abs() / 16 + largest / 448 * 2**-9).all())


def test_alike_weights_are_stacked_and_others_stay_apart() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    storage = GptqStorage(4, 32, 1)

    def read(seed: int | None, part: Tensor) -> QuantizedWeight:
        layout = Gptq(group_size=32, shuffle_seed=seed)
        return gptq_weight("m", layout.module(part), (8, 64), storage)

    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    for seeds, count in (((None, None), 1), ((1, 1), 1), ((1, 2), 2), ((None, 1), 2)):
        parts = [read(seed, part) for seed, part in zip(seeds, torch.split(weight, 8), strict=True)]
        together = stacked(parts)
        assert len(together) == count
        bias = torch.arange(16.0)
        expected = rows @ torch.cat([plain(part) for part in parts]).T + bias
        torch.testing.assert_close(QuantizedLinear(together, bias)(rows), expected)
    mixed = [fp8_rounded(weight[:8]), read(None, weight[8:])]
    assert stacked(mixed) == tuple(mixed)
    (both,) = stacked([fp8_rounded(weight[:8]), fp8_rounded(weight[8:])])
    assert torch.equal(plain(both), plain(fp8_rounded(weight)))


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_quantized_checkpoint_generates_what_its_dequantized_weights_do(
    layout: Layout, family: str, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "plain", family)
    write_quantized(tmp_path / "plain", tmp_path / "small", layout)
    architecture = read_config_json(tmp_path / "small" / "config.json")
    assert architecture.storage is not None
    state = model.state_dict()
    with QuantizedSource(SafetensorsSource(tmp_path / "small"), architecture.storage) as source:
        changed = 0
        for name in source.names:
            before = state[name].clone()
            source.copy_into(name, state[name])
            changed += not torch.equal(before, state[name])
    assert changed == 2 * (4 if family == "phi3" else 7)
    request = make_request([5, 80, 3, 9, 120], max_tokens=8)
    output = run_to_end(make_engine(tmp_path / "small"), {0: [request]})[request.request_id]
    assert Reference(model).num_near_ties(request.prompt_token_ids, output) == 0


def test_experts_may_be_quantized(tmp_path: Path) -> None:
    write_model(tmp_path / "plain", "qwen3-moe")
    write_quantized(tmp_path / "plain", tmp_path / "small", Gptq(bits=8, group_size=16))
    request = make_request([5, 80, 3], max_tokens=4)
    assert len(run_to_end(make_engine(tmp_path / "small"), {0: [request]})[request.request_id]) == 4


PROJECTION = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        pytest.param(LAYOUTS["gptq"], {"scales": None}, ["scales", "missing"], id="gptq-without-scales"),
        pytest.param(LAYOUTS["gptq"], {"qzeros": None}, ["qzeros", "missing"], id="gptq-without-zeros"),
        pytest.param(LAYOUTS["awq"], {"scales": None}, ["scales", "missing"], id="awq-without-scales"),
        pytest.param(
            LAYOUTS["gptq"],
            {"qweight": torch.zeros(7, 96, dtype=torch.int32)},
            ["qweight", "[7, 96]", "[8, 96]"],
            id="gptq-codes-of-another-shape",
        ),
        pytest.param(
            LAYOUTS["awq"],
            {"qzeros": torch.zeros(4, 12, dtype=torch.int32)},
            ["qzeros", "[4, 12]", "[2, 12]"],
            id="awq-zeros-of-another-group-size",
        ),
        pytest.param(
            LAYOUTS["gptq"],
            {"qweight": torch.zeros(8, 96)},
            ["qweight", "float32", "int32"],
            id="gptq-codes-that-are-no-words",
        ),
        pytest.param(
            LAYOUTS["gptq"],
            {"g_idx": torch.zeros(64, dtype=torch.int32)},
            ["g_idx", "groups of 32"],
            id="gptq-groups-of-other-sizes",
        ),
        pytest.param(
            LAYOUTS["fp8-channel"],
            {"weight_scale": None},
            ["weight_scale is missing"],
            id="fp8-without-scales",
        ),
        pytest.param(
            LAYOUTS["fp8-channel"],
            {"weight_scale": torch.ones(95, 1)},
            ["weight_scale", "[95, 1]", "[96, 1]"],
            id="fp8-scales-of-another-shape",
        ),
        pytest.param(
            LAYOUTS["fp8-block"],
            {"weight_scale": torch.ones(3, 3)},
            ["weight_scale", "[3, 3]", "[3, 2]"],
            id="fp8-blocks-of-another-shape",
        ),
        pytest.param(
            LAYOUTS["fp8-channel"],
            {"weight": torch.zeros(96, 64, dtype=torch.float8_e5m2)},
            ["weight", "float8_e5m2"],
            id="another-fp8",
        ),
        pytest.param(
            LAYOUTS["gptq"],
            {"bias": torch.ones(96)},
            [f"{PROJECTION}.bias", "no place"],
            id="a-bias-that-counts",
        ),
    ],
)
def test_malformed_modules_are_refused_by_name(
    layout: Layout, changes: dict[str, Tensor | None], words: list[str], tmp_path: Path
) -> None:
    write_model(tmp_path / "plain", "llama")
    write_quantized(tmp_path / "plain", tmp_path / "small", layout)
    file = tmp_path / "small" / "model.safetensors"
    tensors = load_file(file)
    for part, tensor in changes.items():
        tensors.pop(f"{PROJECTION}.{part}", None)
        if tensor is not None:
            tensors[f"{PROJECTION}.{part}"] = tensor
    save_file(tensors, file)
    with pytest.raises(ModelError) as caught:
        make_engine(tmp_path / "small")
    assert PROJECTION in str(caught.value)
    assert all(each in str(caught.value) for each in words), caught.value


def test_sizes_that_fill_no_words_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "plain", "llama", intermediate_size=96)
    write_quantized(tmp_path / "plain", tmp_path / "small", LAYOUTS["gptq"])
    config = tmp_path / "small" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 90}))
    with pytest.raises(ModelError, match="gate_proj: 90 outputs"):
        make_engine(tmp_path / "small")


GPTQ, AWQ = Gptq(group_size=64).config(), Awq(group_size=64).config()
COMPRESSED = Fp8("channel").config()
GROUP = COMPRESSED["config_groups"]["group_0"]


def in_group(**weights: object) -> dict[str, Any]:
    group = GROUP | {"weights": GROUP["weights"] | weights}
    return COMPRESSED | {"config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("fields", "word", "reason"),
    [
        pytest.param(
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "bitsandbytes",
            "UnsupportedModel",
            id="method",
        ),
        pytest.param({"bits": 4}, "quant_method", "UnsupportedModel", id="no-method"),
        pytest.param({"quant_method": ["gptq"]}, "quant_method", "UnsupportedModel", id="a-list-of-methods"),
        pytest.param("fp8", "quantization_config", "InvalidModel", id="text"),
        pytest.param(GPTQ | {"bits": 3}, "bits = 3", "UnsupportedModel", id="gptq-bits"),
        pytest.param(GPTQ | {"bits": "4"}, "bits", "InvalidModel", id="gptq-bits-as-text"),
        pytest.param(GPTQ | {"group_size": 0}, "group_size", "InvalidModel", id="gptq-group-of-none"),
        pytest.param(GPTQ | {"group_size": None}, "group_size", "InvalidModel", id="gptq-no-group-size"),
        pytest.param(GPTQ | {"checkpoint_format": "marlin"}, "marlin", "UnsupportedModel", id="gptq-marlin"),
        pytest.param(
            GPTQ | {"is_marlin_format": True}, "is_marlin_format", "UnsupportedModel", id="gptq-older-marlin"
        ),
        pytest.param(GPTQ | {"dynamic": {"-:x": {}}}, "dynamic", "UnsupportedModel", id="gptq-by-module"),
        pytest.param(GPTQ | {"lm_head": True}, "lm_head", "UnsupportedModel", id="gptq-head"),
        pytest.param(AWQ | {"bits": 8}, "bits = 8", "UnsupportedModel", id="awq-bits"),
        pytest.param(AWQ | {"version": "gemv"}, "gemv", "UnsupportedModel", id="awq-gemv"),
        pytest.param(AWQ | {"zero_point": False}, "zero_point", "UnsupportedModel", id="awq-symmetric"),
        pytest.param({"quant_method": "fp8", "fmt": "e5m2"}, "e5m2", "UnsupportedModel", id="fp8-other"),
        pytest.param(
            {"quant_method": "fp8", "scale_fmt": "ue8m0"}, "ue8m0", "UnsupportedModel", id="fp8-scale-format"
        ),
        pytest.param(
            {"quant_method": "fp8", "weight_block_size": [128]},
            "weight_block_size",
            "InvalidModel",
            id="fp8-block-of-one-size",
        ),
        pytest.param(
            {"quant_method": "fp8", "weight_block_size": [128, 0]},
            "weight_block_size",
            "InvalidModel",
            id="fp8-block-of-nothing",
        ),
        pytest.param(
            COMPRESSED | {"format": "pack-quantized"},
            "pack-quantized",
            "UnsupportedModel",
            id="packed-integers",
        ),
        pytest.param(in_group(num_bits=4), "4 bits", "UnsupportedModel", id="compressed-bits"),
        pytest.param(in_group(type="int"), "'int'", "UnsupportedModel", id="compressed-integers"),
        pytest.param(in_group(strategy="group"), "'group'", "UnsupportedModel", id="compressed-groups"),
        pytest.param(in_group(strategy="block"), "block_structure", "InvalidModel", id="compressed-no-block"),
        pytest.param(COMPRESSED | {"config_groups": {}}, "config_groups", "UnsupportedModel", id="no-groups"),
        pytest.param(
            COMPRESSED | {"config_groups": []}, "config_groups", "InvalidModel", id="groups-as-a-list"
        ),
        pytest.param(
            COMPRESSED | {"kv_cache_scheme": {"num_bits": 8}},
            "kv_cache_scheme",
            "UnsupportedModel",
            id="scaled-kv-cache",
        ),
        pytest.param(
            COMPRESSED | {"sparsity_config": {"format": "sparse-24"}},
            "sparsity_config",
            "UnsupportedModel",
            id="sparse",
        ),
    ],
)
def test_quantizations_that_are_not_read_are_refused_by_name(fields: object, word: str, reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_storage({"quantization_config": fields})
    assert "quantization_config" in str(caught.value) or caught.value.reason == "InvalidModel"
    assert word in str(caught.value)
    assert caught.value.reason == reason


def test_activations_are_rounded_where_the_checkpoint_means_it() -> None:
    group = GROUP | {"input_activations": {"num_bits": 8, "type": "float", "dynamic": True}}
    rounding = COMPRESSED | {"config_groups": {"group_0": group}}
    assert read_storage({"quantization_config": rounding}) == Fp8Storage(None, rounds_inputs=True)
    assert read_storage({"quantization_config": COMPRESSED}) == Fp8Storage(None, rounds_inputs=False)
    dynamic = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    assert read_storage({"quantization_config": dynamic}) == Fp8Storage(None, rounds_inputs=True)


def test_older_names_of_awq_are_read() -> None:
    fields = {"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "version": "GEMM"}
    assert read_storage({"quantization_config": fields}) == AwqStorage(128)


def test_a_plain_checkpoint_has_no_storage() -> None:
    assert read_storage({}) is None
    assert read_storage({"quantization_config": None}) is None
