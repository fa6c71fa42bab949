"""A real model when KV runs short and when its numbers go wrong: no request's answer depends on another's."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from model_builders import VOCAB_SIZE, write_model
from runtime_builders import make_request

from stoker_runtime.config import AsyncScheduling, Dtype, EngineConfig
from stoker_runtime.engine.engine import Engine
from stoker_runtime.messages import AddRequest, FinishReason, RequestOutput
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.kv_cache import block_bytes
from stoker_runtime.model.loader import load_runner
from stoker_runtime.model.runner import ModelRunner

BLOCK_SIZE = 16
DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    write_model(path, "llama")
    return path


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> Dtype:
    """Types: with the C++ kernels where they are, else with PyTorch, logits are the same to the last bit."""
    name: Dtype = request.param
    return name


def make_engine(
    model: Path, dtype: Dtype, num_blocks: int, scheduling: AsyncScheduling = "off"
) -> tuple[Engine, ModelRunner]:
    """An engine that gives prompts little at a time, and its runner."""
    per_block = block_bytes(read_config_json(model / "config.json"), BLOCK_SIZE, DTYPES[dtype])
    config = EngineConfig(
        model=str(model),
        device="cpu",
        dtype=dtype,
        kv_cache_bytes=num_blocks * per_block,
        block_size=BLOCK_SIZE,
        max_num_seqs=8,
        max_num_batched_tokens=24,
        max_prefill_tokens_beside_decodes=7,
        long_prompt_tokens=20,
        async_scheduling=scheduling,
        seed=0,
    )
    runner = load_runner(config)
    assert isinstance(runner, ModelRunner)
    return Engine(runner, config), runner


def run(engine: Engine, *requests: AddRequest) -> dict[str, list[RequestOutput]]:
    """Answer requests that arrive one step after the other."""
    outputs: defaultdict[str, list[RequestOutput]] = defaultdict(list)
    for request in requests:
        engine.add(request)
        _step(engine, outputs)
    while engine.has_work:
        _step(engine, outputs)
    return outputs


def _step(engine: Engine, outputs: defaultdict[str, list[RequestOutput]]) -> None:
    for output in engine.step().outputs:
        outputs[output.request_id].append(output)
    engine.scheduler.check()


def drawn_requests(seed: int) -> list[AddRequest]:
    """Requests of many lengths and priorities; some begin alike, some sample."""
    rng = random.Random(seed)

    def text(length: int) -> list[int]:
        return [rng.randrange(VOCAB_SIZE) for _ in range(length)]

    common = text(40)
    return [
        make_request(
            common[: rng.choice([0, 20, 40])]
            + [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 30))],
            request_id=str(number),
            priority=rng.choice([-1, 0, 0, 1]),
            max_tokens=rng.randint(30, 60),
            min_tokens=rng.choice([0, 10]),
            temperature=rng.choice([0.0, 1.0]),
            top_p=rng.choice([1.0, 0.8]),
            presence_penalty=rng.choice([0.0, 0.5]),
            frequency_penalty=rng.choice([0.0, 0.4]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            logit_bias=rng.choice([{}, {5: 4.0, 9: -4.0}]),
            seed=number,
            ignore_eos=True,
            logprobs=2,
        )
        for number in range(8)
    ]


@pytest.mark.parametrize(("seed", "scheduling"), [(1, "off"), (2, "off"), (1, "on"), (2, "on")])
def test_preempted_requests_get_every_token_and_every_bit_that_they_get_alone(
    model: Path, dtype: Dtype, seed: int, scheduling: AsyncScheduling
) -> None:
    requests = drawn_requests(seed)
    engine, _ = make_engine(model, dtype, 10, scheduling)
    outputs = run(engine, *requests)

    assert engine.scheduler.stats().num_preemptions > 1
    assert engine.scheduler.stats().kv_usage == 0.0
    alone, _ = make_engine(model, dtype, num_blocks=10)
    for request in requests:
        expected = run(alone, request)[request.request_id]
        got = outputs[request.request_id]
        assert [output.token_ids for output in got] == [output.token_ids for output in expected]
        assert [output.logprobs for output in got] == [output.logprobs for output in expected]


@pytest.mark.parametrize("scheduling", ["off", "on"])
def test_request_whose_numbers_go_wrong_fails_alone_and_spoils_no_later_one(
    model: Path, dtype: Dtype, scheduling: AsyncScheduling
) -> None:
    spoilt = make_request(list(range(20, 56)), request_id="spoilt", max_tokens=20, ignore_eos=True)
    healthy = make_request([7, 8, 9], request_id="healthy", max_tokens=20, ignore_eos=True)
    again = make_request(list(range(20, 56)), request_id="again", max_tokens=20, ignore_eos=True)
    alone, _ = make_engine(model, dtype, num_blocks=20)
    expected = {name: run(alone, request)[name] for name, request in (("healthy", healthy), ("again", again))}

    engine, runner = make_engine(model, dtype, 20, scheduling)
    outputs: defaultdict[str, list[RequestOutput]] = defaultdict(list)
    engine.add(spoilt)
    engine.add(healthy)
    while not (outputs["spoilt"] and outputs["healthy"]):
        _step(engine, outputs)
    block_id = engine.scheduler._requests["spoilt"].block_ids[1]
    runner.cache.storage[:, :, block_id] = float("nan")
    while engine.has_work:
        _step(engine, outputs)
    assert outputs["spoilt"][-1].finish_reason is FinishReason.ERROR
    assert "finite" in str(outputs["spoilt"][-1].error)
    assert engine.scheduler.stats().kv_usage == 0.0

    outputs |= run(engine, again)
    for name, wanted in expected.items():
        assert [output.token_ids for output in outputs[name]] == [output.token_ids for output in wanted]
