"""GGUF files of every type of block that the `gguf` package reads, known to our kernels or not."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from model_builders import Reference, make_gguf_engine, make_model, run_to_end, write_gguf
from runtime_builders import make_request

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import read_gguf
from stoker_runtime.model.block_assembly import BlockAssembly
from stoker_runtime.model.checkpoint import weights
from stoker_runtime.model.checkpoint.blocks import KEPT_TYPES, BlockLinear
from stoker_runtime.model.checkpoint.dequantize import FORMATS, block_format
from stoker_runtime.model.checkpoint.gguf_metadata import architecture_from_gguf
from stoker_runtime.model.checkpoint.weights import GgufSource
from stoker_runtime.model.linear import Linear
from stoker_runtime.model.mlp import Mlp
from stoker_runtime.model.native.library import fits_panels

TYPES = gguf.GGMLQuantizationType
Array = np.ndarray[Any, Any]
# Where a block has its scale in float16, and how large that makes the values of weights.
_SCALES: dict[str, tuple[int, ...]] = {
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q5_K": (0, 2),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ1_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
_SIZES = {
    "IQ3_XXS": 3e-4,
    "IQ3_S": 2e-4,
    "Q2_K": 1e-3,
    "Q3_K": 5e-5,
    "Q5_K": 1e-4,
    "TQ1_0": 0.02,
    "TQ2_0": 0.02,
    "IQ4_XS": 2e-5,
    "IQ4_NL": 5e-4,
}
SLOW = [TYPES[name] for name in (*_SCALES, "IQ1_M", "MXFP4", "NVFP4")]


def slow_blocks(kind: gguf.GGMLQuantizationType, rows: int, columns: int, seed: int = 0) -> Array:
    """Random rows of blocks with values of weights' size, as bytes."""
    size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // size, num_bytes), dtype=np.uint8)
    for place in _SCALES.get(kind.name, ()):
        low = _SIZES.get(kind.name, 1e-3)
        scale = rng.uniform(low, 2 * low, blocks.shape[:2]).astype("<f2")
        blocks[..., place : place + 2] = scale[..., None].view(np.uint8)
    if kind == TYPES.Q5_1:  # the least value is below 0
        blocks[..., 3] ^= 0x80
        blocks[..., 3] += 0x10
    if kind == TYPES.IQ1_M:  # its scale is the upper four bits of each of four numbers
        blocks[..., 55] = blocks[..., 55] & 0x0F | 0x10
    if kind == TYPES.MXFP4:  # a power of two
        blocks[..., 0] = rng.integers(118, 121, blocks.shape[:2])
    if kind == TYPES.NVFP4:  # e4m3, for each 16
        blocks[..., :4] = rng.integers(0x02, 0x10, (*blocks.shape[:2], 4))
    return blocks.reshape(rows, -1)


def test_every_type_that_the_gguf_package_reads_is_read_here() -> None:
    readable = set()
    for kind in TYPES:
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
        except NotImplementedError:
            continue
        readable.add(int(kind))
    known = {int(kind) for kind in TYPES if block_format(kind) is not None}
    assert known - readable == {TYPES.F64}  # that one is simply a wider float
    assert readable <= known
    assert {TYPES(type_id) for type_id in readable - set(FORMATS)} == set(SLOW)


def test_floats_of_64_bits_are_read() -> None:
    values = torch.tensor([0.1, -2.5, 1e30], dtype=torch.float64)
    decoded = FORMATS[TYPES.F64].decode(values.view(torch.uint8).view(3, 8))
    assert torch.equal(decoded.flatten(), values.float())


@pytest.mark.parametrize("kind", SLOW, ids=lambda kind: kind.name)
def test_blocks_are_read_as_the_gguf_package_reads_them(kind: gguf.GGMLQuantizationType) -> None:
    form = block_format(kind)
    assert form is not None
    assert (form.name, form.num_values, form.num_bytes) == (kind.name, *gguf.GGML_QUANT_SIZES[kind])
    stored = slow_blocks(kind, 5, 512)
    expected = gguf.dequantize(stored, kind)
    assert 0.001 < np.abs(expected).mean() < 0.1
    ours = form.decode(torch.from_numpy(stored).view(-1, form.num_bytes))
    np.testing.assert_array_equal(ours.view(5, 512).numpy(), expected)


MATRICES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
    "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj.weight",
    "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
    "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
    "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
}
_HEADS = {"attn_q": 4, "attn_k": 2}


def write_slow_model(path: Path, kind: gguf.GGMLQuantizationType, matrices: Mapping[str, str]) -> Reference:
    """A llama file with some matrices in a type, and the model that their values make."""
    model = make_model("llama", hidden_size=256, intermediate_size=512)
    state = model.state_dict()
    raw: dict[str, Array | None] = {}
    for number, (theirs, ours) in enumerate(matrices.items()):
        rows, columns = state[ours].shape
        stored = slow_blocks(kind, rows, columns, seed=number)
        raw[theirs] = stored
        values = gguf.dequantize(stored, kind)
        num_heads = _HEADS.get(theirs.split(".")[-2])
        if num_heads:  # llama.cpp interleaves the halves of each head
            paired = values.reshape(num_heads, rows // num_heads // 2, 2, columns)
            values = paired.swapaxes(1, 2).reshape(rows, columns)
        state[ours].copy_(torch.from_numpy(np.ascontiguousarray(values)))
    write_gguf(path, model, "llama", dict.fromkeys(raw, kind), extra=raw)
    return Reference(model)


@pytest.mark.parametrize("kind", SLOW, ids=lambda kind: kind.name)
def test_a_model_generates_what_its_dequantized_weights_do(
    kind: gguf.GGMLQuantizationType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_SERIAL_CHUNK_VALUES", 1024)  # in many pieces
    reference = write_slow_model(tmp_path / "m.gguf", kind, MATRICES)
    request = make_request([5, 80, 3, 9, 120], max_tokens=8)
    output = run_to_end(make_gguf_engine(tmp_path / "m.gguf"), {0: [request]})[request.request_id]
    assert len(set(output)) > 1
    assert reference.num_near_ties(request.prompt_token_ids, output) == 0


def test_stacks_of_experts_are_cut_where_their_blocks_are(tmp_path: Path) -> None:
    model = make_model(
        "qwen3-moe",
        hidden_size=256,
        moe_intermediate_size=64,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        norm_topk_prob=True,
    )
    stored = slow_blocks(TYPES.IQ4_XS, 6 * 64, 256).reshape(6, 64, -1)
    name = "blk.1.ffn_up_exps.weight"
    write_gguf(tmp_path / "m.gguf", model, "qwen3moe", {name: TYPES.IQ4_XS}, extra={name: stored})
    parsed = read_gguf(tmp_path / "m.gguf")
    expected = gguf.dequantize(stored, TYPES.IQ4_XS)
    with GgufSource(parsed, architecture_from_gguf(parsed)) as source:
        for expert in range(6):
            place = torch.empty(64, 256)
            source.copy_into(f"model.layers.1.mlp.experts.{expert}.up_proj.weight", place)
            np.testing.assert_array_equal(place.numpy(), expected[expert])


def test_pieces_are_small_and_read_by_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_slow_model(tmp_path / "m.gguf", TYPES.Q5_0, {"token_embd.weight": "model.embed_tokens.weight"})
    monkeypatch.setattr(weights, "_SERIAL_CHUNK_VALUES", 2048)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    sizes: list[int] = []
    meeting = threading.Barrier(2)  # broken, and an error, unless two threads come
    form = block_format(TYPES.Q5_0)
    assert form is not None

    def watched(blocks: torch.Tensor) -> torch.Tensor:
        sizes.append(blocks.shape[0] * 32)
        if len(sizes) <= 2:
            meeting.wait(timeout=60)
        return form.decode(blocks)

    monkeypatch.setattr(weights, "block_format", lambda type_id: replace(form, decode=watched))
    parsed = read_gguf(tmp_path / "m.gguf")
    with GgufSource(parsed, architecture_from_gguf(parsed)) as source:
        source.copy_into("model.embed_tokens.weight", torch.empty(160, 256))
    assert sizes == [2048] * 20


@pytest.mark.parametrize(
    ("type_id", "name"),
    [(TYPES.Q8_K, "Q8_K"), (TYPES.I32, "I32"), (31, "Q4_0_4_4"), (137, "of GGML's type 137")],
)
def test_a_type_that_nothing_reads_is_named_with_the_way_to_convert(
    type_id: int, name: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", make_model("llama"), "llama")
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    key = b"token_embd.weight"
    place = content.index(key) + len(key) + 4 + 2 * 8  # behind the number of dimensions, and two of them
    content[place : place + 4] = int(type_id).to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(content)
    parsed = read_gguf(tmp_path / "m.gguf")
    message = f"token_embd.weight is {name}, .*llama-quantize"
    with (
        GgufSource(parsed, architecture_from_gguf(parsed)) as source,
        pytest.raises(ModelError, match=message) as caught,
    ):
        source.copy_into("model.embed_tokens.weight", torch.empty(160, 64))
    assert caught.value.reason == "UnsupportedModel"


def test_the_gguf_package_is_imported_only_for_types_that_need_it(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from stoker_runtime.model.checkpoint.dequantize import FORMATS, block_format\n"
        "from stoker_runtime.model import loader\n"
        "assert all(block_format(kind) for kind in FORMATS)\n"
        "assert 'gguf' not in sys.modules\n"
        "assert block_format(23).name == 'IQ4_XS'\n"
        "assert 'gguf' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_matrices_that_no_kernel_multiplies_with_are_rounded_beside_those_that_are_kept(
    tmp_path: Path,
) -> None:
    """With --quantization gguf: the layers' are in no panel of blocks, embeddings are plain."""
    matrices = {name: ours for name, ours in MATRICES.items() if "attn_k" not in name}
    write_slow_model(tmp_path / "m.gguf", TYPES.Q5_K, matrices)
    parsed = read_gguf(tmp_path / "m.gguf")
    architecture = architecture_from_gguf(parsed)
    with GgufSource(parsed, architecture) as source:
        assembly = BlockAssembly(architecture, source, torch.bfloat16, torch.device("cpu"))
        layers, frame = list(assembly.layers()), assembly.frame()
        down = layers[1].mlp
        assert isinstance(down, Mlp)
        assert isinstance(down.down, BlockLinear)
        assert not fits_panels(down.down, is_pair=False)
        plain = torch.empty(256, 512)
        source.copy_into("model.layers.1.mlp.down_proj.weight", plain)
        assert torch.equal(down.down.weight(), plain)
        assert isinstance(layers[0].qkv, Linear)  # its other parts are floats in the file
        assert isinstance(frame.embedding, torch.Tensor)
    assert TYPES.Q5_K not in KEPT_TYPES
