"""The text part of models that see images, under whichever names a checkpoint has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_builders import (
    VOCAB_SIZE,
    WRAPPED_FAMILIES,
    make_engine,
    reference,
    run_to_end,
    write_model,
)
from runtime_builders import make_request
from safetensors.torch import load_file, save_file

from stoker_runtime.errors import ModelError
from stoker_runtime.model.checkpoint.wrapped import text_name
from stoker_runtime.tokenizer_files import read_eos_token_ids

Rename = Callable[[str], str]


def older(name: str) -> str:
    """A tensor's name before `transformers` 4.52 and since 5, which is how the builder saves."""
    return name


def newer(name: str) -> str:
    """The name that 4.52 to 4.57 gave it."""
    for old, new in (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise AssertionError(name)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change the tensors of a checkpoint."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("layout", [older, newer])
@pytest.mark.parametrize("block_size", [4, 16], ids=["pytorch", "kernels"])
@pytest.mark.parametrize("family", WRAPPED_FAMILIES)
def test_a_mixed_batch_equals_the_reference_under_either_names(
    family: str, block_size: int, layout: Rename, tmp_path: Path
) -> None:
    write_model(tmp_path, family)
    rewrite(tmp_path, lambda tensors: {layout(name): tensor for name, tensor in tensors.items()})
    engine = make_engine(tmp_path, num_blocks=1024 // block_size, block_size=block_size, budget=32)
    requests = [
        make_request([(7 * i + 3 * j * j + j) % VOCAB_SIZE for j in range(1 + 9 * i)], max_tokens=64)
        for i in range(5)
    ]
    outputs = run_to_end(engine, {3 * i: [request] for i, request in enumerate(requests)})
    for request in requests:
        output = outputs[request.request_id]
        assert len(output) == 64
        assert reference(family).num_near_ties(request.prompt_token_ids, output) == 0


@pytest.mark.parametrize("layout", [older, newer])
def test_an_lm_head_of_its_own_is_found_under_either_name(layout: Rename, tmp_path: Path) -> None:
    """As in Mistral Small 3.1, whose configuration does not say that its embeddings are not tied."""
    model = write_model(tmp_path, "mistral3-images")
    head = torch.randn(VOCAB_SIZE, 64, generator=torch.Generator().manual_seed(1))
    own = {"language_model.lm_head.weight": head}
    rewrite(tmp_path, lambda tensors: {layout(name): tensor for name, tensor in (tensors | own).items()})
    engine = make_engine(tmp_path)
    request = make_request([5, 3, 8], max_tokens=1)
    (token_id,) = run_to_end(engine, {0: [request]})[request.request_id]
    with torch.inference_mode():
        hidden = model.model(torch.tensor([[5, 3, 8]])).last_hidden_state[0, -1]
    assert token_id == int((head @ hidden).argmax())


@pytest.mark.parametrize(
    ("stored", "known"),
    [
        ("language_model.model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("model.language_model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.embeddings.patch_embedding.weight", None),
        ("model.vision_tower.transformer.layers.0.attention.q_proj.weight", None),
        ("multi_modal_projector.mm_soft_emb_norm.weight", None),
        ("model.multi_modal_projector.linear_1.weight", None),
    ],
)
def test_what_a_stored_tensor_is(stored: str, known: str | None) -> None:
    assert text_name(stored) == known


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.up_proj.weight",
        "audio_tower.conv.weight",
        "language_model.embed_tokens.weight",
        "vision_tower_2.weight",
    ],
)
def test_a_tensor_of_neither_part_is_refused_by_name(name: str, tmp_path: Path) -> None:
    write_model(tmp_path, "gemma3-images")
    rewrite(tmp_path, lambda tensors: {**tensors, name: torch.zeros(2)})
    with pytest.raises(ModelError, match=name) as caught:
        make_engine(tmp_path)
    assert caught.value.reason == "UnsupportedModel"


def test_an_unknown_tensor_within_the_text_part_is_refused_by_name(tmp_path: Path) -> None:
    write_model(tmp_path, "gemma3-images")
    name = "language_model.model.layers.0.extra.weight"
    rewrite(tmp_path, lambda tensors: {**tensors, name: torch.zeros(2)})
    with pytest.raises(ModelError, match=r"layers\.0\.extra\.weight"):
        make_engine(tmp_path)


def test_one_weight_under_both_names_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, "gemma3-images")
    rewrite(
        tmp_path,
        lambda tensors: {
            **tensors,
            "model.language_model.norm.weight": tensors["language_model.model.norm.weight"].clone(),
        },
    )
    with pytest.raises(ModelError, match=r"two tensors for model\.norm\.weight"):
        make_engine(tmp_path)


def test_end_tokens_of_the_text_part_count(tmp_path: Path) -> None:
    write_model(tmp_path, "gemma3-images", eos_token_id=9)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "eos_token_id" not in config
    assert read_eos_token_ids(tmp_path) == (9,)
