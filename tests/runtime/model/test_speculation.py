"""Guessed tokens on real models: the same answers, greedy and drawn, with fewer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from model_builders import make_engine, reference, run_to_end, write_model
from runtime_builders import make_request

from stoker_runtime.messages import AddRequest

FAMILIES = ["llama", "mistral-window", "qwen3", "gemma3"]


def requests(**sampling: Any) -> list[AddRequest]:
    """Prompts that go round in circles, so that what follows is guessed, mostly wrongly."""
    circles = ([5, 9, 23, 7], [1, 2], [40, 41, 42, 43, 44, 45, 46], [3])
    prompts = [(circle * 12)[:length] for circle, length in zip(circles, (30, 17, 26, 9), strict=True)]
    return [make_request(prompt, max_tokens=24, **sampling) for prompt in prompts]


@pytest.mark.parametrize("block_size", [4, 16], ids=["pytorch", "kernels"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_the_reference(family: str, block_size: int, tmp_path: Path) -> None:
    write_model(tmp_path, family)
    sizes = {"num_blocks": 256 // block_size, "block_size": block_size, "max_num_seqs": 3}
    engine = make_engine(tmp_path, speculative="ngram", **sizes)
    wanted = requests(ignore_eos=True)
    outputs = run_to_end(engine, {2 * i: [request] for i, request in enumerate(wanted)})
    for request in wanted:
        output = outputs[request.request_id]
        assert len(output) == 24
        assert reference(family).num_near_ties(request.prompt_token_ids, output) == 0
    assert engine.scheduler.stats().num_draft_tokens > 0


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param({"temperature": 0.0}, id="greedy"),
        pytest.param({"temperature": 1.0, "seed": 3}, id="drawn"),
        pytest.param({"temperature": 0.5, "seed": 4, "top_p": 0.8, "logprobs": 2}, id="top-p"),
        pytest.param({"temperature": 0.0, "min_tokens": 9, "stop_token_ids": (7,)}, id="stop"),
        pytest.param({"temperature": 0.7, "seed": 5, "presence_penalty": 1.0}, id="penalties"),
        pytest.param({"temperature": 0.0, "bad_words_token_ids": ((7, 7, 7), (9, 7, 9))}, id="bad-words"),
        pytest.param({"temperature": 1.0, "seed": 6, "allowed_token_ids": (5, 7, 9)}, id="allowed"),
    ],
)
def test_every_way_to_sample_gives_what_it_gives_without_guesses(
    sampling: dict[str, Any], tmp_path: Path
) -> None:
    write_model(tmp_path, "llama")
    answers, num_steps = [], []
    for speculative in ("none", "ngram"):
        engine = make_engine(tmp_path, block_size=16, num_blocks=40, speculative=speculative)
        wanted = requests(logit_bias={7: 9.0, 9: 9.0}, **sampling)  # hardly anything else, so guesses abound
        outputs = run_to_end(engine, {0: wanted})
        answers.append([outputs[request.request_id] for request in wanted])
        num_steps.append(engine.scheduler.stats().num_steps)
    assert answers[0] == answers[1]
    assert engine.scheduler.stats().num_accepted_tokens > 0
    assert num_steps[1] < num_steps[0]
