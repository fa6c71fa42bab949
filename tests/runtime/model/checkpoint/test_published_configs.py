"""Models as they are published: each field of their config.json is taken, and logits equal `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from model_logits import difference, make_reference, our_logits, text
from published_configs import PUBLISHED

from stoker_runtime.model.checkpoint.config_json import ARCHITECTURES
from stoker_runtime.model.checkpoint.wrapped import WRAPPED_NAMES


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_taken_and_exact(name: str, tmp_path: Path) -> None:
    model = make_reference(tmp_path, PUBLISHED[name])
    assert difference(tmp_path, model, text(160)) is None


def test_there_is_one_of_every_architecture() -> None:
    known = {config["architectures"][0] for config in PUBLISHED.values()}
    assert known == set(ARCHITECTURES) - set(WRAPPED_NAMES)


@pytest.mark.parametrize(
    ("name", "fields", "left_out", "longest"),
    [
        pytest.param("Qwen3-0.6B", {}, "head_dim", 200, id="head-dim-of-qwen3"),
        pytest.param("Phi-3-mini-128k", {}, "original_max_position_embeddings", 200, id="original-of-phi3"),
        pytest.param(
            "Qwen2.5-7B-1M",
            {"dual_chunk_attention_config": {"chunk_size": 128, "local_size": 28}},
            None,
            100,
            id="first-of-two-chunks",
        ),
        pytest.param("Phi-3.5-mini", {}, None, 128, id="original-context"),
    ],
)
def test_what_a_file_leaves_out_and_where_a_context_ends(
    name: str, fields: dict[str, Any], left_out: str | None, longest: int, tmp_path: Path
) -> None:
    raw = {key: value for key, value in {**PUBLISHED[name], **fields}.items() if key != left_out}
    model = make_reference(tmp_path, raw)
    assert len(our_logits(tmp_path, text(160))) == longest
    assert difference(tmp_path, model, text(160)) is None
