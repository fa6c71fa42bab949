"""Each architecture as a GGUF file, as llama.cpp's converter writes them, against `transformers`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_builders import (
    MAX_POSITION,
    Reference,
    make_gguf_engine,
    make_model,
    run_to_end,
    write_gguf,
)
from runtime_builders import make_request

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import GgufFile, read_gguf
from stoker_runtime.model.architecture import (
    Architecture,
    ExpertSettings,
    LinearScaling,
    LongScaling,
    YarnScaling,
)
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.checkpoint.gguf_metadata import architecture_from_gguf
from stoker_runtime.model.checkpoint.weights import GgufSource
from stoker_runtime.model.decoder import Decoder

VALUES = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 46, 62]),
    st.floats(),
    st.booleans(),
    st.sampled_from(["", "yarn", "linear", "none", "longrope"]),
    st.lists(st.integers(0, 3), max_size=2),
)
TYPES = gguf.GGMLQuantizationType
# GGUF files have experts in all layers, and their weights made to add up to 1.
QWEN3_MOE = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
# The pattern that no key says, in as many layers as it takes.
GEMMA3 = {
    "num_hidden_layers": 7,
    "query_pre_attn_scalar": 32,
    "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", {}),
    "llama-tied": ("llama", "llama-tied", {}),
    "llama-linear": ("llama", "llama", {"rope_parameters": LINEAR}),
    "llama-yarn": ("llama", "llama-yarn", {}),
    "qwen2": ("qwen2", "qwen2", {}),
    "qwen2-yarn": ("qwen2", "qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", "qwen3", {}),
    "mixtral": ("llama", "mixtral", {}),
    "qwen3moe": ("qwen3moe", "qwen3-moe", QWEN3_MOE),
    "qwen3moe-many": ("qwen3moe", "qwen3-moe-normalized", QWEN3_MOE),
    "qwen3moe-yarn": ("qwen3moe", "qwen3-moe", {**QWEN3_MOE, "rope_parameters": YARN}),
    "gemma2": ("gemma2", "gemma2", {"num_hidden_layers": 3, "query_pre_attn_scalar": 32}),
    "gemma3": ("gemma3", "gemma3", GEMMA3),
    "gemma3-capped": ("gemma3", "gemma3", {**GEMMA3, "final_logit_softcapping": 4.0}),
    "phi3": ("phi3", "phi3", {}),
    "phi4": ("phi3", "phi4", {}),
    "phi4-mini": ("phi3", "phi4-mini", {}),
    "granite": ("granite", "granite", {}),
    "olmo2": ("olmo2", "olmo2", {}),
    "smollm3": ("smollm3", "smollm3", {"num_hidden_layers": 5, "no_rope_layer_interval": 4}),
}


def architecture_of(path: Path) -> Architecture:
    return architecture_from_gguf(read_gguf(path))


@pytest.mark.parametrize("name", CASES)
def test_gguf_model_generates_what_the_original_does(name: str, tmp_path: Path) -> None:
    architecture, family, fields = CASES[name]
    model = make_model(family, **fields)
    write_gguf(tmp_path / "m.gguf", model, architecture)
    # Longer than windows, and than the context before yarn.
    prompt = [(7 * index * index + 3 * index) % 157 for index in range(80)]
    requests = [make_request([5, 80, 3, 9, 120], max_tokens=12), make_request(prompt, max_tokens=12)]
    outputs = run_to_end(make_gguf_engine(tmp_path / "m.gguf"), {0: requests})
    reference = Reference(model)
    for request in requests:
        output = outputs[request.request_id]
        assert len(output) == 12
        assert reference.num_near_ties(request.prompt_token_ids, output) == 0


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_gemmas_norms_stay_in_float32(name: str, tmp_path: Path) -> None:
    architecture, family, fields = CASES[name]
    model = make_model(family, **fields)
    own = model.state_dict()["model.norm.weight"]
    own.copy_(torch.linspace(-0.1, 0.1, own.numel()))
    write_gguf(tmp_path / "m.gguf", model, architecture)
    parsed = read_gguf(tmp_path / "m.gguf")
    with GgufSource(parsed, architecture_from_gguf(parsed)) as source:
        assembly = Assembly(architecture_from_gguf(parsed), source, torch.bfloat16, torch.device("cpu"))
        layers, norm = list(assembly.layers()), assembly.frame().norm
    assert norm.dtype == torch.float32
    assert torch.equal(norm, 1 + own.float())
    assert layers[0].mlp_norms.behind is not None
    assert layers[0].mlp_norms.behind.dtype == torch.float32


def write(path: Path, name: str, **metadata: Any) -> None:
    architecture, family, fields = CASES[name]
    write_gguf(path, make_model(family, **fields), architecture, **metadata)


def test_experts_are_read_from_the_metadata(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "qwen3moe")
    found = architecture_of(tmp_path / "m.gguf")
    assert found.experts == ExpertSettings(6, 3, 48, normalizes_weights=True)
    assert [kind.is_sparse for kind in found.layers] == [True, True]
    write(tmp_path / "m.gguf", "qwen3moe", expert_feed_forward_length=0)
    unstated = architecture_of(tmp_path / "m.gguf").experts
    assert unstated == ExpertSettings(6, 3, 96 // 3, normalizes_weights=True)
    write(tmp_path / "m.gguf", "mixtral")
    assert architecture_of(tmp_path / "m.gguf").experts == ExpertSettings(4, 2, 96, normalizes_weights=True)
    write(tmp_path / "m.gguf", "llama", expert_count=0)
    assert architecture_of(tmp_path / "m.gguf").experts is None


@pytest.mark.parametrize(
    ("name", "metadata", "word"),
    [
        ("qwen3moe", {"expert_weights_norm": False}, "qwen3moe.expert_weights_norm = False"),
        ("qwen3moe", {"expert_weights_scale": 2.5}, "qwen3moe.expert_weights_scale = 2.5"),
        ("qwen3moe", {"expert_gating_func": 2}, "qwen3moe.expert_gating_func = 2"),
        ("qwen3moe", {"expert_shared_count": 1}, "qwen3moe.expert_shared_count = 1"),
        ("qwen3moe", {"leading_dense_block_count": 1}, "qwen3moe.leading_dense_block_count = 1"),
        ("mixtral", {"expert_feed_forward_length": 32}, "llama.expert_feed_forward_length = 32"),
        ("qwen3", {"expert_count": 8}, "qwen3.expert_count = 8"),
        ("mixtral", {"expert_count": 2**31}, "llama.expert_count = 2147483648"),
        ("llama", {"attention__causal": False}, "llama.attention.causal = False"),
        ("llama", {"logit_scale": 8.0}, "llama.logit_scale = 8.0"),
        ("llama", {"attn_logit_softcapping": 50.0}, "llama.attn_logit_softcapping = 50.0"),
        ("llama", {"rope__scaling__type": "longrope"}, "llama.rope.scaling.type = 'longrope'"),
        ("llama", {"rope__scaling__attn_factor": 1.5}, "llama.rope.scaling.attn_factor = 1.5"),
        ("llama-yarn", {"rope__scaling__yarn_attn_factor": 1.5}, "llama.rope.scaling.yarn_attn_factor = 1.5"),
        ("llama-yarn", {"rope__scaling__yarn_ext_factor": 0.5}, "llama.rope.scaling.yarn_ext_factor = 0.5"),
        ("llama-yarn", {"rope__scaling__yarn_log_multiplier": 0.5}, "yarn_log_multiplier = 0.5"),
        ("qwen2", {"attention__sliding_window": 64}, "qwen2.attention.sliding_window = 64"),
        ("olmo2", {"attention__sliding_window": 64}, "olmo2.attention.sliding_window = 64"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "gemma3.attn_logit_softcapping = 50.0"),
        ("gemma2", {"attention__scale": 0.1}, "gemma2.attention.scale = 0.1"),
        ("gemma2", {"rope__dimension_count": 16}, "gemma2.rope.dimension_count = 16"),
        ("gemma2", {"attention__value_length": 16}, "gemma2.attention.value_length = 16"),
        ("granite", {"rope__scaling__finetuned": False}, "granite.rope.scaling.finetuned = False"),
        ("phi4-mini", {"rope__scaling__type": "yarn"}, "yarn rope scaling beside rope_factors_short.weight"),
        ("phi4", {"rope__scaling__attn_factor": 1.5}, "phi3.rope.scaling.attn_factor = 1.5"),
        ("qwen3", {"rope__dimension_sections": [1, 2, 3, 0]}, "qwen3.rope.dimension_sections = [1, 2, 3, 0]"),
    ],
)
def test_metadata_that_changes_results_is_refused_by_name(
    name: str, metadata: dict[str, Any], word: str, tmp_path: Path
) -> None:
    write(tmp_path / "m.gguf", name, **metadata)
    with pytest.raises(ModelError) as caught:
        architecture_of(tmp_path / "m.gguf")
    assert caught.value.reason == "UnsupportedModel"
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {"expert_weights_norm": True, "expert_weights_scale": 1.0, "expert_gating_func": 1},
        {"attention__causal": True, "expert_shared_count": 0, "rope__scaling__type": "none"},
    ],
)
def test_metadata_that_says_what_is_computed_is_taken(metadata: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "qwen3moe")
    expected = architecture_of(tmp_path / "m.gguf")
    write(tmp_path / "m.gguf", "qwen3moe", **metadata)
    assert architecture_of(tmp_path / "m.gguf") == expected


def test_a_factor_without_a_type_divides_all_frequencies(tmp_path: Path) -> None:
    """As llama.cpp takes it, under the older name as well."""
    for metadata in ({"rope__scaling__factor": 4.0}, {"rope__scale_linear": 4.0}):
        write(tmp_path / "m.gguf", "llama", **metadata)
        (rope,) = architecture_of(tmp_path / "m.gguf").ropes
        assert rope.scaling == LinearScaling(4.0)


def test_yarn_extends_the_context(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "llama-yarn", rope__scaling__factor=8.0, rope__scaling__attn_factor=2.0)
    found = architecture_of(tmp_path / "m.gguf")
    (rope,) = found.ropes
    assert found.max_position == 8 * 64
    assert isinstance(rope.scaling, YarnScaling)
    assert (rope.scaling.beta_fast, rope.scaling.beta_slow) == (4.0, 1.0)
    assert rope.attention_factor == pytest.approx(2 * (1 + 0.1 * np.log(8)))
    write(tmp_path / "m.gguf", "llama-yarn", context_length=4 * MAX_POSITION)
    assert architecture_of(tmp_path / "m.gguf").max_position == 4 * MAX_POSITION


def test_windows_are_those_of_the_architecture(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "gemma3")
    found = architecture_of(tmp_path / "m.gguf")
    assert [kind.window for kind in found.layers] == [9, 9, 9, 9, 9, None, 9]
    assert [rope.theta for rope in found.ropes] == [10000.0, 1e6]
    assert [rope.scaling for rope in found.ropes] == [None, LinearScaling(8.0)]
    write(tmp_path / "m.gguf", "gemma3", attention__sliding_window=0)
    (rope,) = architecture_of(tmp_path / "m.gguf").ropes
    assert (rope.theta, rope.scaling) == (1e6, LinearScaling(8.0))
    changed = {"attention__sliding_window_pattern": 3, "rope__freq_base_swa": 20000.0}
    write(tmp_path / "m.gguf", "gemma3", **changed)
    found = architecture_of(tmp_path / "m.gguf")
    assert [kind.window for kind in found.layers] == [9, 9, None, 9, 9, None, 9]
    assert found.ropes[0].theta == 20000.0
    write(tmp_path / "m.gguf", "gemma2")
    assert [kind.window for kind in architecture_of(tmp_path / "m.gguf").layers] == [9, None, 9]
    write(tmp_path / "m.gguf", "gemma2", attention__sliding_window=MAX_POSITION)
    assert architecture_of(tmp_path / "m.gguf").windows == (None,)


def test_gemma_without_keys_has_what_its_first_files_lacked(tmp_path: Path) -> None:
    absent = {"attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"}
    write(tmp_path / "m.gguf", "gemma2", context_length=8192)
    parsed = read_gguf(tmp_path / "m.gguf")
    kept = {key: value for key, value in parsed.metadata.items() if key.removeprefix("gemma2.") not in absent}
    found = architecture_from_gguf(replace(parsed, metadata=kept))
    assert (found.scales.attention_cap, found.scales.logits_cap) == (50.0, 30.0)
    assert found.windows == (4096, None)


@pytest.mark.parametrize(("name", "num_layers"), [("gemma2", 46), ("gemma3", 62)])
def test_gemmas_largest_models_scale_scores_by_a_narrower_head(
    name: str, num_layers: int, tmp_path: Path
) -> None:
    """144 and 168 in the real ones, whose heads have 128 elements."""
    write(tmp_path / "m.gguf", name)
    assert architecture_of(tmp_path / "m.gguf").scales.attention is None
    model = make_model(name, num_hidden_layers=num_layers, layer_types=["full_attention"] * num_layers)
    write_gguf(tmp_path / "m.gguf", model, name)
    assert architecture_of(tmp_path / "m.gguf").scales.attention == (64 // 4) ** -0.5


def test_a_window_of_phi_is_kept(tmp_path: Path) -> None:
    """Which `transformers` does and llama.cpp does not."""
    write(tmp_path / "m.gguf", "phi3")
    assert architecture_of(tmp_path / "m.gguf").windows == (13,)
    write(tmp_path / "m.gguf", "phi4")
    assert architecture_of(tmp_path / "m.gguf").windows == (None,)


def test_long_rope_ends_with_the_original_context(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "phi4-mini")
    found = architecture_of(tmp_path / "m.gguf")
    assert found.max_position == MAX_POSITION
    (rope,) = found.ropes
    assert isinstance(rope.scaling, LongScaling)
    assert rope.scaling.divisors == (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
    assert rope.attention_factor == pytest.approx(1.118034)


@pytest.mark.parametrize(
    ("short", "long", "word"),
    [
        (
            np.ones(5, dtype=np.float32),
            np.ones(6, dtype=np.float32),
            "6 numbers in the tensor rope_factors_short",
        ),
        (np.ones(6, dtype=np.float32), None, "6 numbers in the tensor rope_factors_long"),
        (np.zeros(6, dtype=np.float32), np.ones(6, dtype=np.float32), "no frequency can be divided by"),
        (np.ones(6, dtype=np.float16), np.ones(6, dtype=np.float32), "rope_factors_short.weight is not F32"),
    ],
)
def test_divisors_that_cannot_be_meant_are_refused(short: Any, long: Any, word: str, tmp_path: Path) -> None:
    extra = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    write(tmp_path / "m.gguf", "phi4-mini", extra=extra)
    with pytest.raises(ModelError, match=word):
        architecture_of(tmp_path / "m.gguf")


def test_divisors_behind_the_end_of_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(path, "phi4-mini")
    parsed = read_gguf(path)
    path.write_bytes(path.read_bytes()[: parsed.tensors["rope_factors_short.weight"].offset + 8])
    with pytest.raises(ModelError, match="cut short"):
        architecture_of(path)


def test_divisors_without_a_place_are_named(tmp_path: Path) -> None:
    extra = {"rope_factors_long.weight": np.ones(4, dtype=np.float32)}
    write_gguf(tmp_path / "m.gguf", make_model("phi4"), "phi3", extra=extra)
    with pytest.raises(ModelError, match=r"no place in phi3, the first is rope_factors_long\.weight"):
        load(tmp_path / "m.gguf")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufFile]:
    """One file of each architecture."""
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for name, (architecture, _, _) in CASES.items():
        write(folder / f"{name}.gguf", name)
        found[architecture] = read_gguf(folder / f"{name}.gguf")
    return found


@given(data=st.data())
def test_metadata_of_any_kind_is_read_or_refused_never_worse(
    data: st.DataObject, files: dict[str, GgufFile]
) -> None:
    name = data.draw(st.sampled_from(sorted(files)))
    metadata = dict(files[name].metadata)
    keys = [key for key in metadata if key.startswith(name)]
    keys += [f"{name}.{key}" for key in ("rope.scaling.type", "rope.scaling.factor", "expert_weights_scale")]
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3)):
        metadata[key] = data.draw(VALUES)
    try:
        found = architecture_from_gguf(replace(files[name], metadata=metadata))
    except ModelError:
        return
    assert found.name == name


def load(path: Path) -> None:
    load_parsed(read_gguf(path))


def load_parsed(parsed: GgufFile) -> None:
    architecture = architecture_from_gguf(parsed)
    with GgufSource(parsed, architecture) as source:
        Decoder(architecture, Assembly(architecture, source, torch.float32, torch.device("cpu")))


def test_experts_of_a_type_that_nothing_reads_are_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", make_model("mixtral"), "llama")
    parsed = read_gguf(tmp_path / "m.gguf")
    name = "blk.0.ffn_up_exps.weight"
    tensors = {**parsed.tensors, name: replace(parsed.tensors[name], type_id=int(TYPES.Q8_K))}
    with pytest.raises(ModelError, match=r"blk\.0\.ffn_up_exps\.weight is Q8_K"):
        load_parsed(replace(parsed, tensors=tensors))


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_number_of_experts_than_the_metadata_says_is_refused(count: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", make_model("mixtral"), "llama", expert_count=count)
    with pytest.raises(ModelError, match=rf"ffn_\w+_exps\.weight has 4 experts, the metadata says {count}"):
        load(tmp_path / "m.gguf")


def test_experts_that_a_layer_lacks_are_named(tmp_path: Path) -> None:
    extra = {"blk.1.ffn_down_exps.weight": None}
    write_gguf(tmp_path / "m.gguf", make_model("mixtral"), "llama", extra=extra)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts\.0\.down_proj\.weight is missing"):
        load(tmp_path / "m.gguf")


def test_more_layers_than_there_are_tensors_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "llama", block_count=2**31)
    with pytest.raises(ModelError, match="block_count is 2147483648, with 21 tensors in the file"):
        architecture_of(tmp_path / "m.gguf")


def test_a_mixture_without_a_number_of_experts_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "qwen3moe", expert_count=0)
    with pytest.raises(ModelError, match="experts cannot be picked"):
        architecture_of(tmp_path / "m.gguf")
