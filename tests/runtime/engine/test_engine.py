from collections import defaultdict
from typing import Any

import msgspec
import pytest
from runtime_builders import FakeRunner, make_engine_config, make_request

from stoker_runtime.config import FEW_REQUESTS
from stoker_runtime.core.step import StepPlan
from stoker_runtime.engine.engine import Engine
from stoker_runtime.engine.queue_times import QueueTimes
from stoker_runtime.messages import AddRequest, FinishReason


def make_engine(runner: FakeRunner, **config: Any) -> Engine:
    return Engine(runner, make_engine_config(**config), hash_key=b"k" * 16)


def answers(engine: Engine, *requests: AddRequest) -> dict[str, list[int]]:
    tokens: defaultdict[str, list[int]] = defaultdict(list)
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step().outputs:
            tokens[output.request_id] += output.token_ids
        engine.scheduler.check()
    return tokens


def test_budgets_follow_the_runner_when_they_are_automatic() -> None:
    runner = FakeRunner(num_blocks=400, vocab_size=512, max_model_len=512)
    engine = make_engine(runner, device="auto", max_num_seqs=0)
    engine.add(make_request(num_prompt_tokens=255, max_tokens=1))
    engine.add(make_request([9] * 10, max_tokens=1))
    engine.step()
    assert runner.plans[0].num_tokens == 256


@pytest.mark.parametrize(
    ("num_decodes", "gives_way"), [(0, False), (FEW_REQUESTS, True), (FEW_REQUESTS + 1, False)]
)
def test_cores_are_left_to_the_server_where_a_prompt_draws_out_the_steps_of_few(
    num_decodes: int, gives_way: bool
) -> None:
    engine = make_engine(FakeRunner(num_blocks=400), max_num_batched_tokens=32, max_num_seqs=16)
    for number in range(num_decodes):
        engine.add(make_request([number + 2], max_tokens=40))
    engine.step()
    engine.step()
    assert engine.handover_s == 0.0  # nobody waits for a prompt
    engine.add(make_request(num_prompt_tokens=90, max_tokens=1))
    engine.step()
    assert (0.0 < engine.handover_s < 0.001) == gives_way
    engine.scheduler.abort_all()
    engine.step()
    assert engine.handover_s == 0.0


def test_a_device_of_its_own_leaves_the_cores_to_the_server_anyway() -> None:
    assert make_engine_config().for_device("cuda").handover_s == 0.0


def test_eos_of_the_model_ends_a_request() -> None:
    engine = make_engine(FakeRunner(eos_token_ids=(7,), next_token=lambda request, digest: 7))
    engine.add(make_request(request_id="a"))
    (output,) = engine.step().outputs
    assert (output.finish_reason, output.stop_token_id) == (FinishReason.STOP, 7)


def test_min_tokens_keeps_eos_away() -> None:
    engine = make_engine(FakeRunner(eos_token_ids=(7,), next_token=lambda request, digest: 7))
    assert answers(engine, make_request(request_id="a", min_tokens=2))["a"] == [8, 8, 7]


def test_own_seed_gives_the_same_tokens_whatever_else_runs() -> None:
    request = make_request([3, 4], request_id="a", temperature=1.0, seed=5)
    alone = answers(make_engine(FakeRunner()), request)["a"]
    others = [make_request([number], temperature=1.0) for number in range(5)]
    assert answers(make_engine(FakeRunner(), seed=9), *others, request)["a"] == alone


def test_drawn_seeds_differ_between_requests_and_repeat_with_the_engine_seed() -> None:
    def two(seed: int) -> dict[str, list[int]]:
        prompts = [make_request([3, 4], request_id=name, temperature=1.0) for name in "ab"]
        return answers(make_engine(FakeRunner(), seed=seed), *prompts)

    assert two(1) == two(1)
    assert two(1) != two(2)
    assert two(1)["a"] != two(1)["b"]


@pytest.mark.parametrize(
    ("prompt", "sampling", "stray"),
    [
        pytest.param([1, 128], {}, 128, id="prompt-too-large"),
        pytest.param([1, -1], {}, -1, id="prompt-negative"),
        pytest.param([1], {"logit_bias": {500: 1.0}}, 500, id="logit-bias"),
        pytest.param([1], {"stop_token_ids": (128,)}, 128, id="stop-token"),
        pytest.param([1], {"allowed_token_ids": (5, 128)}, 128, id="allowed-token"),
        pytest.param([1], {"bad_words_token_ids": ((5,), (6, -2))}, -2, id="bad-word"),
    ],
)
def test_token_outside_the_vocabulary_never_reaches_the_model(
    prompt: list[int], sampling: dict[str, Any], stray: int
) -> None:
    runner = FakeRunner(vocab_size=128)
    engine = make_engine(runner)
    engine.add(make_request(prompt, request_id="a", **sampling))
    (output,) = engine.step().outputs
    assert output.finish_reason is FinishReason.ERROR
    assert output.error == f"token id {stray} is outside the vocabulary of 128"
    assert not runner.plans
    assert not engine.has_work


def test_step_without_work_reports_stats_and_computes_nothing() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    outputs = engine.step()
    assert outputs.outputs == []
    assert outputs.stats.num_steps == 0
    assert not runner.plans


def test_prefix_cache_can_be_turned_off() -> None:
    runner = FakeRunner()
    engine = make_engine(runner, prefix_caching=False)
    answers(engine, make_request(num_prompt_tokens=9, max_tokens=1))
    answers(engine, make_request(num_prompt_tokens=9, max_tokens=1))
    assert [plan.num_tokens for plan in runner.plans] == [9, 9]


def test_failing_runner_is_not_hidden() -> None:
    def fail(_plan: StepPlan) -> None:
        raise RuntimeError("the device fell off")

    engine = make_engine(FakeRunner(on_step=fail))
    engine.add(make_request())
    with pytest.raises(RuntimeError, match="fell off"):
        engine.step()


def test_the_first_output_tells_how_long_a_request_waited() -> None:
    now = 12.0
    engine = Engine(FakeRunner(), make_engine_config(max_num_seqs=1), clock=lambda: now)
    for name in "ab":
        request = make_request(request_id=name, max_tokens=2)
        engine.add(msgspec.structs.replace(request, arrival_s=10.0))
    engine.add(make_request(request_id="unknown", max_tokens=1))
    waits: list[tuple[str, float | None]] = []
    while engine.has_work:
        waits += [(output.request_id, output.queue_s) for output in engine.step().outputs]
        now += 1.0

    assert waits == [("a", 2.0), ("a", None), ("b", 4.0), ("b", None), ("unknown", None)]


def test_a_request_that_never_ran_tells_no_wait_and_leaves_nothing_behind() -> None:
    engine = make_engine(FakeRunner(num_blocks=2))
    engine.add(msgspec.structs.replace(make_request(request_id="a", num_prompt_tokens=100), arrival_s=1.0))
    engine.add(msgspec.structs.replace(make_request(request_id="b"), arrival_s=1.0))
    engine.abort("b")
    while engine.has_work:
        assert all(output.queue_s is None for output in engine.step().outputs)

    assert engine._queue_times == QueueTimes()
