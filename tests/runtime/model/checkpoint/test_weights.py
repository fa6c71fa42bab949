"""Weights out of safetensors and GGUF files, and every reason not to take them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from model_builders import (
    VOCAB_SIZE,
    Reference,
    k_blocks,
    make_engine,
    make_gguf_engine,
    make_model,
    run_to_end,
    write_gguf,
    write_model,
)
from runtime_builders import make_request
from safetensors.torch import load_file, save_file

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import read_gguf
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.checkpoint.dequantize import FORMATS
from stoker_runtime.model.checkpoint.gguf_metadata import architecture_from_gguf
from stoker_runtime.model.checkpoint.weights import GgufSource, SafetensorsSource
from stoker_runtime.model.decoder import Decoder
from stoker_runtime.model.linear import Linear, packed, packing_works
from stoker_runtime.model.mlp import Experts

TYPES = gguf.GGMLQuantizationType
CPU = torch.device("cpu")


def build(folder: Path) -> None:
    architecture = read_config_json(folder / "config.json")
    with SafetensorsSource(folder) as source:
        Decoder(architecture, Assembly(architecture, source, torch.float32, CPU))


@pytest.mark.parametrize("type_id", sorted(set(FORMATS) - {TYPES.F64}))
@given(seed=st.integers(0, 2**32 - 1), num_blocks=st.integers(1, 5))
def test_dequantized_blocks_equal_the_gguf_package_bit_for_bit(
    type_id: int, seed: int, num_blocks: int
) -> None:
    form = FORMATS[type_id]
    kind = TYPES(type_id)
    assert form.name == kind.name
    assert (form.num_values, form.num_bytes) == gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(seed).integers(0, 256, (num_blocks, form.num_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random scales may be infinite or no number at all
        expected = gguf.dequantize(blocks, kind)
    ours = form.decode(torch.from_numpy(blocks)).numpy()
    np.testing.assert_array_equal(ours.view(np.float32), expected.reshape(ours.shape).astype(np.float32))


@pytest.mark.parametrize("kind", [TYPES.F16, TYPES.BF16, TYPES.Q4_0, TYPES.Q4_1, TYPES.Q8_0])
def test_gguf_tensor_of_each_type_loads_as_the_gguf_package_reads_it(kind: int, tmp_path: Path) -> None:
    model = make_model("qwen3")
    write_gguf(tmp_path / "m.gguf", model, "qwen3", {"ffn_down": TYPES(kind), "token_embd": TYPES(kind)})
    parsed = read_gguf(tmp_path / "m.gguf")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    with GgufSource(parsed, architecture_from_gguf(parsed)) as source:
        for theirs, ours in (
            ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ):
            expected = gguf.dequantize(stored[theirs].data, stored[theirs].tensor_type)
            place = torch.empty(expected.shape)
            source.copy_into(ours, place)
            np.testing.assert_array_equal(place.numpy(), expected)


@pytest.mark.parametrize("kind", [TYPES.Q4_K, TYPES.Q6_K])
def test_gguf_model_of_k_blocks_generates_what_its_dequantized_weights_do(kind: int, tmp_path: Path) -> None:
    """As a file of llama.cpp's Q4_K_M has them: in rows of several blocks, rotated projections among them."""
    model = make_model("llama", hidden_size=512, intermediate_size=768)
    state = model.state_dict()
    raw = {}
    for number, (theirs, ours) in enumerate(
        {
            "token_embd.weight": "model.embed_tokens.weight",
            "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
            "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj.weight",
            "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
            "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
            "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
        }.items()
    ):
        rows, columns = state[ours].shape
        raw[theirs] = k_blocks(TYPES(kind), rows, columns, seed=number)
        values = gguf.dequantize(raw[theirs], TYPES(kind))
        num_heads = {"attn_q": 4, "attn_k": 2}.get(theirs.split(".")[-2])
        if num_heads:  # llama.cpp interleaves the halves of each head
            paired = values.reshape(num_heads, rows // num_heads // 2, 2, columns)
            values = paired.swapaxes(1, 2).reshape(rows, columns)
        state[ours].copy_(torch.from_numpy(np.ascontiguousarray(values)))
    path = tmp_path / "m.gguf"
    write_gguf(path, model, "llama", dict.fromkeys(raw, TYPES(kind)), extra=raw)

    request = make_request([5, 80, 3, 9, 120], max_tokens=12)
    output = run_to_end(make_gguf_engine(path), {0: [request]})[request.request_id]
    assert len(set(output)) > 3
    assert Reference(model).num_near_ties(request.prompt_token_ids, output) == 0


def test_llama3_frequency_divisors_in_a_gguf_file_are_applied(tmp_path: Path) -> None:
    plain, scaled = make_model("llama"), make_model("llama3", num_key_value_heads=2)
    scaled.load_state_dict(plain.state_dict())
    frequencies = plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq
    write_gguf(tmp_path / "m.gguf", plain, "llama", extra={"rope_freqs.weight": frequencies.numpy()})
    request = make_request(list(range(100, 150)), max_tokens=12)
    output = run_to_end(make_gguf_engine(tmp_path / "m.gguf"), {0: [request]})[request.request_id]
    assert Reference(scaled).num_near_ties(request.prompt_token_ids, output) == 0
    plain_output = [plain_token(plain, [*request.prompt_token_ids, *output[:i]]) for i in range(12)]
    assert output != plain_output  # the divisors matter here


def plain_token(model: Any, token_ids: list[int]) -> int:
    return Reference(model).choices(tuple(token_ids), (0,))[0][0]


def test_sharded_directory_equals_the_single_file(tmp_path: Path) -> None:
    model = make_model("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    request = make_request([1, 2, 3], max_tokens=8)
    output = run_to_end(make_engine(tmp_path), {0: [request]})[request.request_id]
    assert Reference(model).num_near_ties([1, 2, 3], output) == 0


def test_shards_of_different_types_are_converted(tmp_path: Path) -> None:
    """The reference is what `transformers` loads of the same files."""
    make_model("qwen2").save_pretrained(tmp_path, max_shard_size="30KB")
    types = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for index, shard in enumerate(sorted(tmp_path.glob("*.safetensors"))):
        tensors = {name: tensor.to(types[index % 4]) for name, tensor in load_file(shard).items()}
        save_file(tensors, shard, metadata={"format": "pt"})
    assert index >= 3
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    request = make_request([1, 2, 3], max_tokens=8)
    output = run_to_end(make_engine(tmp_path), {0: [request]})[request.request_id]
    assert Reference(theirs).num_near_ties([1, 2, 3], output) == 0


def test_a_tensor_in_two_shards_is_named_with_the_second(tmp_path: Path) -> None:
    """The index says which one counts, `transformers` takes the last: nobody knows which is meant."""
    make_model("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor + 1}, second)
    with pytest.raises(ModelError, match=f"two tensors for {name}, the second .* in {second.name}"):
        build(tmp_path)


def test_weights_stored_in_bfloat16_are_converted(tmp_path: Path) -> None:
    model = make_model("llama").bfloat16()
    model.save_pretrained(tmp_path)
    request = make_request([9, 8, 7], max_tokens=8)
    output = run_to_end(make_engine(tmp_path), {0: [request]})[request.request_id]
    assert Reference(model.float()).num_near_ties([9, 8, 7], output) == 0


def test_stored_copy_of_tied_embeddings_and_old_rotary_buffers_are_passed_over(tmp_path: Path) -> None:
    write_model(tmp_path, "llama-tied")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, file)
    build(tmp_path)


def test_a_stored_head_that_is_no_copy_of_tied_embeddings_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path, "llama-tied")
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].roll(1, dims=0).contiguous()
    save_file({**tensors, "lm_head.weight": head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    request = make_request([9, 8, 7], max_tokens=8)
    output = run_to_end(make_engine(tmp_path), {0: [request]})[request.request_id]
    assert Reference(theirs).num_near_ties([9, 8, 7], output) == 0
    assert "lm_head.weight is no copy" in caplog.text


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        pytest.param(
            {"model__layers__1__mlp__up_proj__weight": None},
            "InvalidModel",
            ["model.layers.1.mlp.up_proj.weight", "missing"],
            id="missing",
        ),
        pytest.param(
            {"model__layers__0__self_attn__q_proj__bias": torch.ones(64)},
            "UnsupportedModel",
            ["model.layers.0.self_attn.q_proj.bias", "no place"],
            id="unexpected",
        ),
        pytest.param(
            {"model__norm__weight": torch.ones(63)},
            "InvalidModel",
            ["model.norm.weight", "[63]", "[64]"],
            id="another-shape",
        ),
        pytest.param(
            {"model__norm__weight": torch.ones(64, dtype=torch.int8)},
            "UnsupportedModel",
            ["model.norm.weight", "int8"],
            id="integers",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    changes: dict[str, torch.Tensor | None], reason: str, words: list[str], tmp_path: Path
) -> None:
    write_model(tmp_path, "llama")
    change_tensors(tmp_path, **changes)
    with pytest.raises(ModelError) as caught:
        build(tmp_path)
    assert caught.value.reason == reason
    assert all(word in str(caught.value) for word in words)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=lost.name):
        build(tmp_path)


def test_weights_that_are_there_twice_are_those_of_the_usual_name(tmp_path: Path) -> None:
    """Mistral's repositories hold a consolidated copy, and an index stays when shards are merged."""
    write_model(tmp_path, "llama")
    (tmp_path / "consolidated.safetensors").write_bytes(b"not read")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    build(tmp_path)


def test_a_tensor_that_the_shards_lack_is_named(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    lost, _ = tensors.popitem()
    save_file(tensors, shard)
    with pytest.raises(ModelError, match=f"tensor {lost} is missing"):
        build(tmp_path)


def test_untied_embeddings_need_a_head(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    change_tensors(tmp_path, lm_head__weight=None)
    with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
        build(tmp_path)


def test_a_file_that_git_lfs_has_not_fetched_is_called_that(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(ModelError, match=r"model\.safetensors is a Git LFS pointer.*git lfs pull"):
        build(tmp_path)


def test_index_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_model(folder, "llama")
    shutil.move(folder / "model.safetensors", tmp_path / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="outside its directory"):
        build(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_broken_index_is_refused(text: str, tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="index"):
        build(tmp_path)


def test_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be read"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        pytest.param([], "InvalidModel", id="nothing"),
        pytest.param(["pytorch_model.bin"], "UnsupportedModel", id="pickle"),
        pytest.param(["a.safetensors", "b.safetensors"], "InvalidModel", id="two-files-without-index"),
    ],
)
def test_directory_without_usable_weights_is_refused(files: list[str], reason: str, tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        build(tmp_path)
    assert caught.value.reason == reason


def test_the_weights_of_a_mixture_are_in_memory_once(tmp_path: Path) -> None:
    write_model(tmp_path, "mixtral")
    with SafetensorsSource(tmp_path) as source:
        architecture = read_config_json(tmp_path / "config.json")
        layer = next(Assembly(architecture, source, torch.float32, CPU).layers())
    assert isinstance(layer.mlp, Experts)
    assert layer.mlp.stacks is not None
    for index, expert in enumerate(layer.mlp.experts):
        for linear, stack in zip((expert.gate_up, expert.down), layer.mlp.stacks, strict=True):
            assert isinstance(linear, Linear)
            assert isinstance(stack, torch.Tensor)
            assert linear.weight.data_ptr() == stack[index].data_ptr()
    assert (layer.mlp.mapped(packed).stacks is None) == packing_works(torch.float32)


def open_gguf(path: Path) -> None:
    parsed = read_gguf(path)
    architecture = architecture_from_gguf(parsed)
    with GgufSource(parsed, architecture) as source:
        Decoder(architecture, Assembly(architecture, source, torch.float32, CPU))


def test_gguf_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, make_model("qwen3"), "qwen3")
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(ModelError, match="cut short"):
        open_gguf(path)


def test_gguf_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    extra = {"blk.0.attn_sinks.weight": np.ones(4, dtype=np.float32)}
    write_gguf(tmp_path / "m.gguf", make_model("qwen3"), "qwen3", extra=extra)
    with pytest.raises(ModelError, match=r"blk\.0\.attn_sinks\.weight"):
        open_gguf(tmp_path / "m.gguf")


def test_gguf_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", make_model("qwen3"), "qwen3", extra={"blk.1.ffn_up.weight": None})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        open_gguf(tmp_path / "m.gguf")


def test_vocabulary_of_a_gguf_model_is_its_embedding_table(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", make_model("qwen3"), "qwen3")
    assert architecture_from_gguf(read_gguf(tmp_path / "m.gguf")).vocab_size == VOCAB_SIZE
