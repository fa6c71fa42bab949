"""Logits behind every token of a text, from this runtime and from `transformers`, for one config.json.

They tell two models apart that would pick the same tokens. The reference is what `AutoModelForCausalLM` makes
of the file, so that whatever it chooses a model by counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from model_builders import randomize

from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.messages import SamplingParams
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.kv_cache import block_bytes
from stoker_runtime.model.loader import load_runner
from stoker_runtime.model.runner import ModelRunner

_BLOCK_SIZE = 16
_TOLERANCE = 1e-4  # of the largest logit; another order of additions makes about a thirtieth of it


def text(vocab_size: int, length: int = 200) -> list[int]:
    """Tokens that do not repeat with any period."""
    return [(7 * i + 3 * i * i + i // 5) % vocab_size for i in range(length)]


def make_reference(folder: Path, raw: Mapping[str, Any]) -> transformers.PreTrainedModel:
    """Make a random float32 model of a config.json and save both, the file as it is given."""
    folder.mkdir(exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(raw))
    config = transformers.AutoConfig.from_pretrained(folder)
    model = randomize(transformers.AutoModelForCausalLM.from_config(config), 1)
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))  # some that can be made cannot compute
    model.save_pretrained(folder)
    file.write_text(json.dumps(raw))
    return model


def our_logits(folder: Path, token_ids: Sequence[int]) -> torch.Tensor:
    """Compute a text, cut to what the model attends over, in two chunks; [T, V].

    Raises:
        ModelError: the model is refused.
    """
    architecture = read_config_json(folder / "config.json")
    known = list(token_ids[: architecture.max_position])
    num_blocks = -(-len(known) // _BLOCK_SIZE)
    runner = load_runner(
        EngineConfig(
            model=str(folder),
            device="cpu",
            dtype="float32",
            seed=0,
            block_size=_BLOCK_SIZE,
            max_model_len=len(known),
            max_num_batched_tokens=len(known),
            kv_cache_bytes=num_blocks * block_bytes(architecture, _BLOCK_SIZE, torch.float32),
        )
    )
    assert isinstance(runner, ModelRunner)
    logits = []
    border = len(known) // 3
    for start, end in ((0, border), (border, len(known))):
        request = ScheduledRequest(
            request_id="text",
            token_ids=known[start:end],
            num_computed_tokens=start,
            block_ids=list(range(num_blocks)),
            samples=True,
            sampling=SamplingParams(max_tokens=1),
            seed=0,
            prompt_token_ids=known,
            output_token_ids=[],
            num_draft_tokens=end - start - 1,
        )
        with torch.inference_mode():
            logits.append(runner.decoder(StepPlan([request]), runner.cache).clone())
    return torch.cat(logits)


def difference(folder: Path, model: transformers.PreTrainedModel, token_ids: Sequence[int]) -> str | None:
    """How our logits are not those of the model that is saved there; None if they are.

    Raises:
        ModelError: the model is refused.
    """
    ours = our_logits(folder, token_ids)
    with torch.inference_mode():
        theirs = model(torch.tensor([token_ids[: len(ours)]])).logits[0].float()
    distances = (ours - theirs).abs().amax(dim=-1) / theirs.abs().max().clamp(min=1.0)
    if float(distances.max()) < _TOLERANCE:
        return None
    first = int((distances >= _TOLERANCE).nonzero()[0])
    return f"logits differ by {float(distances.max()):.2g} of the largest, first behind token {first}"
