"""The log-probabilities of prompts equal `transformers`, however prompts are cut and whatever runs beside."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from model_builders import VOCAB_SIZE, make_engine, reference, write_model
from runtime_builders import make_request
from torch import Tensor

from stoker_runtime.engine.engine import Engine
from stoker_runtime.messages import AddRequest, FinishReason, RequestOutput, TokenLogprob
from stoker_runtime.model import loader
from stoker_runtime.model.cuda.rooms import buckets, token_buckets

FAMILIES = ["llama", "qwen3", "gemma3", "mixtral", "mistral-window"]


@pytest.fixture(params=[4, 16], ids=["pytorch", "kernels"])
def block_size(request: pytest.FixtureRequest) -> int:
    """The C++ kernels, where a machine has them, compute with blocks that fill their vectors."""
    return int(request.param)


def make_prompt(length: int, seed: int = 0) -> list[int]:
    return [(7 * seed + 3 * j * j + 5 * j + 1) % VOCAB_SIZE for j in range(length)]


@cache
def expected(family: str, prompt: tuple[int, ...]) -> Tensor:
    """The reference's log-probabilities of what follows each token of a prompt, [tokens, V]."""
    with torch.inference_mode():
        logits: Tensor = reference(family).model(torch.tensor([prompt])).logits[0]
    return logits.float().log_softmax(dim=-1)


def run(engine: Engine, *requests: AddRequest) -> dict[str, list[RequestOutput]]:
    """Answer requests that arrive one step after the other; their outputs by request id."""
    outputs: dict[str, list[RequestOutput]] = {request.request_id: [] for request in requests}
    left = list(requests)
    for _ in range(2000):
        if left:
            engine.add(left.pop(0))
        for output in engine.step().outputs:
            outputs[output.request_id].append(output)
        engine.scheduler.check()
        if not left and not engine.has_work:
            return outputs
    raise AssertionError("work is left")


def scores_of(outputs: list[RequestOutput]) -> list[TokenLogprob]:
    return [score for output in outputs for score in output.prompt_logprobs]


def assert_scored(family: str, request: AddRequest, outputs: list[RequestOutput]) -> None:
    assert outputs[-1].error is None
    prompt, num_top = request.prompt_token_ids, request.sampling.prompt_logprobs
    scores = scores_of(outputs)
    assert [score.token_id for score in scores] == ([] if num_top is None else prompt[1:])
    for position, score in enumerate(scores):
        row = expected(family, tuple(prompt))[position]
        assert score.logprob == pytest.approx(float(row[score.token_id]), abs=1e-4)
        # Of nearly equal ones, either may come first.
        most, least = ((row > row[score.token_id] + gap).sum() + 1 for gap in (-1e-4, 1e-4))
        assert least <= score.rank <= most
        assert len(score.top) == num_top
        best = row.topk(len(score.top)).values.tolist()
        assert [value for _, value in score.top] == pytest.approx(best, abs=1e-4)
        assert [value for _, value in score.top] == pytest.approx(
            [float(row[token_id]) for token_id, _ in score.top], abs=1e-4
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [5, 64])
def test_scores_equal_the_reference(family: str, budget: int, block_size: int, tmp_path: Path) -> None:
    write_model(tmp_path, family)
    engine = make_engine(
        tmp_path, num_blocks=512 // block_size, block_size=block_size, budget=budget, max_num_seqs=4
    )
    requests = [
        make_request(make_prompt(length, length), prompt_logprobs=num_top, logprobs=1, max_tokens=4)
        for length, num_top in ((1, 3), (2, 0), (19, 2), (40, VOCAB_SIZE), (33, None), (7, 1))
    ]
    outputs = run(engine, *requests)
    for request in requests:
        assert_scored(family, request, outputs[request.request_id])
        assert sum(len(output.token_ids) for output in outputs[request.request_id]) == 4


@pytest.mark.parametrize("scheduling", ["off", "on"])
def test_preempted_prompts_are_scored_once(scheduling: str, block_size: int, tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    engine = make_engine(
        tmp_path,
        num_blocks={4: 18, 16: 5}[block_size],
        block_size=block_size,
        budget=12,
        max_prefill_tokens_beside_decodes=3,
        async_scheduling=scheduling,
    )
    requests = [
        make_request(make_prompt(14 + i, i), prompt_logprobs=2, max_tokens=24, priority=-i) for i in range(4)
    ]
    outputs = run(engine, *requests)
    assert engine.step().stats.num_preemptions > 0
    for request in requests:
        assert_scored("llama", request, outputs[request.request_id])
    last = [outputs[request.request_id][-1] for request in requests]
    assert sum(output.num_preemptions for output in last) == engine.step().stats.num_preemptions


def test_prompts_in_circles_are_scored_beside_drafts(block_size: int, tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    engine = make_engine(
        tmp_path, num_blocks=512 // block_size, block_size=block_size, budget=16, speculative="ngram"
    )
    requests = [
        make_request(([5, 9, 23] * 12)[: 20 + i], prompt_logprobs=1, max_tokens=12, logit_bias={9: 20.0})
        for i in range(4)
    ]
    outputs = run(engine, *requests)
    assert engine.scheduler.stats().num_accepted_tokens > 0
    for request in requests:
        assert_scored("llama", request, outputs[request.request_id])


def test_numbers_that_go_wrong_fail_the_scored_request_alone(block_size: int, tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    engine = make_engine(tmp_path, num_blocks=512 // block_size, block_size=block_size, budget=8)
    runner: Any = engine._runner
    picker = runner.decoder.picker

    class Spoiled:
        """Takes the third row of the first step with as many for bad."""

        done = False

        def are_finite(self, logits: Tensor) -> Tensor:
            is_finite: Tensor = picker.are_finite(logits)
            if len(is_finite) > 3 and not self.done:
                self.done = True
                is_finite[2] = False
            return is_finite

        def pick(self, *arguments: Any) -> Tensor:
            picked: Tensor = picker.pick(*arguments)
            return picked

    runner.decoder.picker = Spoiled()
    good = make_request(make_prompt(3), prompt_logprobs=1, max_tokens=6)
    bad = make_request(make_prompt(20), prompt_logprobs=1, max_tokens=6)
    outputs = run(engine, good, bad)
    assert_scored("llama", good, outputs[good.request_id])
    (end,) = outputs[bad.request_id]
    assert (end.finish_reason, end.error) == (
        FinishReason.ERROR,
        "the model's logits are not finite numbers",
    )


@pytest.mark.parametrize("is_recorded", [False, True], ids=["launched", "recorded"])
def test_triton_kernels_score_prompts(
    is_recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stoker_runtime.model.cuda.decoder import CudaDecoder  # imports Triton, which is not everywhere

    write_model(tmp_path, "llama")
    monkeypatch.setattr(loader, "_decoder", lambda _, *parts: CudaDecoder(*parts))
    engine = make_engine(tmp_path, num_blocks=32, block_size=8, budget=13, max_num_seqs=4)
    runner: Any = engine._runner
    if is_recorded:
        runner.decoder.record(runner.cache, buckets(4), token_buckets(13))
    requests = [
        make_request(make_prompt(length, length), prompt_logprobs=num_top, max_tokens=3)
        for length, num_top in ((14, 2), (8, None), (27, 0))
    ]
    outputs = run(engine, *requests)
    for request in requests:
        assert_scored("llama", request, outputs[request.request_id])
        plain = make_request(request.prompt_token_ids, max_tokens=3)
        tokens = [t for output in run(engine, plain)[plain.request_id] for t in output.token_ids]
        assert tokens == [t for output in outputs[request.request_id] for t in output.token_ids]
