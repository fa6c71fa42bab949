"""Steps planned while the one before is computed: the same tokens; nothing is lost, leaked or mixed up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from runtime_builders import FakeRunner, make_engine_config, make_request
from scheduler_builders import EOS, add, answer, finish_reasons, make_scheduler
from traffic_builders import (
    Arrival,
    Machine,
    arrivals,
    assert_scored_once,
    machines,
    run,
    tight_machines,
    tokens_of,
)

from stoker_runtime.core.scheduler import Scheduler
from stoker_runtime.core.step import SampledToken, StepPlan, StepResult, sampled_before
from stoker_runtime.engine.engine import Engine
from stoker_runtime.messages import FinishReason, RequestOutput


class FailingRunner(FakeRunner):
    """Some of its steps run out of memory, and what they should have stored is garbage."""

    failing_steps: frozenset[int] = frozenset()
    num_steps = 0

    def step(self, plan: StepPlan) -> StepResult:
        self.num_steps += 1
        if self.num_steps in self.failing_steps:
            self.plans.append(plan)
            for request in plan.requests:
                for position in range(len(request.token_ids)):
                    slot = self._slot(request, request.num_computed_tokens + position)
                    self._slots[slot] = 10**6 + slot
            return StepResult(error="out of memory")
        return super().step(plan)


def ends(outputs: list[RequestOutput]) -> tuple[list[int], FinishReason | None, int | None, str | None]:
    last = outputs[-1]
    return tokens_of(outputs), last.finish_reason, last.stop_token_id, last.error


def assert_idle(engine: Engine) -> None:
    stats = engine.scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (0, 0, 0.0)
    assert engine.scheduler.num_in_flight == 0


def waits(scheduler: Scheduler) -> bool:
    return scheduler.must_wait


def alone(machine: Machine, arrival: Arrival, runner: FakeRunner) -> list[RequestOutput]:
    engine = machine.engine(runner, async_scheduling="off")
    return run(engine, [Arrival(arrival.request, 0, None)])[arrival.request.request_id]


@given(
    machine=machines | tight_machines,
    traffic=arrivals(at_least=4),
    failing=st.sets(st.sampled_from([f"r{index}" for index in range(10)]), max_size=2),
    unscorable=st.sets(st.sampled_from([f"r{index}" for index in range(10)]), max_size=2),
)
def test_every_request_gets_what_it_would_get_alone_and_in_turn(
    machine: Machine, traffic: list[Arrival], failing: set[str], unscorable: set[str]
) -> None:
    def runner() -> FakeRunner:
        found = machine.runner()
        found.failing_request_ids = failing
        found.failing_prompt_ids = unscorable
        return found

    used = runner()
    engine = machine.engine(used, async_scheduling="on")
    outputs = run(engine, traffic)
    assert_idle(engine)
    stats = engine.scheduler.stats()
    event(f"preempted: {stats.num_preemptions > 0}, shared: {stats.prefix_hits > 0}")
    for plan in used.plans:
        assert plan.num_tokens <= machine.max_num_seqs + machine.extra_budget
        assert len(plan.requests) <= machine.max_num_seqs
    for arrival in traffic:
        got = outputs[arrival.request.request_id]
        assert [output.finish_reason is None for output in got[:-1]] == [True] * (len(got) - 1)
        by_itself = alone(machine, arrival, runner())
        expected = ends(by_itself)
        assert_scored_once(arrival, got, by_itself)
        if got[-1].finish_reason is FinishReason.ABORT:
            assert tokens_of(got) == expected[0][: len(tokens_of(got))]
        else:
            assert ends(got) == expected


@given(
    machine=machines | tight_machines,
    traffic=arrivals(at_least=4),
    failing_steps=st.frozensets(st.integers(1, 30), min_size=1, max_size=6),
)
def test_a_step_that_fails_ends_its_requests_and_spoils_no_other(
    machine: Machine, traffic: list[Arrival], failing_steps: frozenset[int]
) -> None:
    plain = machine.runner()
    runner = FailingRunner(
        plain.num_blocks, plain.block_size, plain.vocab_size, plain.max_model_len, plain.eos_token_ids
    )
    runner.failing_steps = failing_steps
    engine = machine.engine(runner, async_scheduling="on")
    outputs = run(engine, traffic)
    assert_idle(engine)
    for arrival in traffic:
        got = outputs[arrival.request.request_id]
        by_itself = alone(machine, arrival, machine.runner())
        expected = ends(by_itself)
        assert_scored_once(arrival, got, by_itself)
        if got[-1].error == "out of memory" or got[-1].finish_reason is FinishReason.ABORT:
            assert tokens_of(got) == expected[0][: len(tokens_of(got))]
        else:
            assert ends(got) == expected


def drive(
    max_tokens: int, next_token: Callable[[int], int], **sampling: Any
) -> tuple[list[StepPlan], list[RequestOutput]]:
    """Run one request to its end; tokens are a function of their position."""
    runner = FakeRunner(
        next_token=lambda request, _: next_token(request.num_computed_tokens + len(request.token_ids)),
        eos_token_ids=(EOS,),
    )
    engine = Engine(runner, make_engine_config(async_scheduling="on"), hash_key=b"k" * 16)
    engine.add(make_request([1, 2, 3], request_id="a", max_tokens=max_tokens, **sampling))
    outputs = []
    for _ in range(50):
        outputs += engine.step().outputs
        engine.scheduler.check()
        if not engine.has_work:
            return list(runner.plans), outputs
    raise AssertionError("the request does not end")


def test_an_end_by_length_is_foreseen() -> None:
    plans, outputs = drive(3, lambda position: 50)
    assert len(plans) == 3
    assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_an_end_by_a_stop_token_costs_one_row() -> None:
    plans, outputs = drive(9, lambda position: EOS if position == 5 else 50)
    assert [len(plan.requests) for plan in plans] == [1, 1, 1, 1]
    assert ([token for output in outputs for token in output.token_ids], len(outputs)) == ([50, 50, EOS], 3)
    assert outputs[-1].finish_reason is FinishReason.STOP


def test_min_tokens_count_pending_ones() -> None:
    _, outputs = drive(9, lambda position: EOS, min_tokens=3)
    assert [output.token_ids for output in outputs] == [[EOS + 1]] * 3 + [[EOS]]


def test_two_steps_are_in_flight_and_pending_tokens_are_told_by_their_place() -> None:
    scheduler = make_scheduler()
    add(scheduler, 3, request_id="a", max_tokens=4)
    add(scheduler, [7, 8], request_id="b", max_tokens=2)
    first = scheduler.schedule()
    assert not waits(scheduler)
    second = scheduler.schedule()
    assert [request.token_ids for request in second.requests] == [[sampled_before(0)], [sampled_before(1)]]
    assert [request.num_computed_tokens for request in second.requests] == [3, 2]
    assert waits(scheduler)
    resolved = second.resolved(StepResult([SampledToken("a", 50), SampledToken("b", -1, error="NaN")]))
    assert [request.token_ids for request in resolved.requests] == [[50], [0]]
    scheduler.update(answer(first))
    scheduler.check()
    third = scheduler.schedule()  # b ends with its pending token
    assert [request.request_id for request in third.requests] == ["a"]
    assert finish_reasons(scheduler.update(answer(second))) == {"a": None, "b": FinishReason.LENGTH}
    scheduler.check()


@pytest.mark.parametrize(
    "sampling",
    [
        {"presence_penalty": 1.5},
        {"frequency_penalty": 1.5},
        {"repetition_penalty": 1.5},
        {"bad_words_token_ids": ((3,), (7, 8))},
    ],
    ids=str,
)
def test_what_looks_back_waits_for_the_token(sampling: dict[str, Any]) -> None:
    scheduler = make_scheduler()
    add(scheduler, 3, request_id="a", max_tokens=4, **sampling)
    plan = scheduler.schedule()
    assert waits(scheduler)
    scheduler.update(answer(plan))
    assert not waits(scheduler)
    assert [request.token_ids for request in scheduler.schedule().requests] == [[50]]


def test_bad_words_of_one_token_need_not_wait() -> None:
    scheduler = make_scheduler()
    add(scheduler, 3, request_id="a", max_tokens=4, bad_words_token_ids=((3,), (7,)))
    scheduler.schedule()
    assert not waits(scheduler)


def test_blocks_that_are_short_are_waited_for() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=2, max_num_seqs=2)
    add(scheduler, [1, 2, 3], request_id="a", max_tokens=8)
    add(scheduler, [4, 5, 6], request_id="b", max_tokens=8)
    first = scheduler.schedule()
    second = scheduler.schedule()  # their fourth tokens fit
    scheduler.update(answer(first))
    assert waits(scheduler)  # two need a block and one is free
    outputs = scheduler.update(StepResult([SampledToken("a", EOS), SampledToken("b", 50)]))
    assert finish_reasons(outputs) == {"a": FinishReason.STOP, "b": None}
    assert len(second.requests) == 2
    assert [request.request_id for request in scheduler.schedule().requests] == ["b"]
    assert scheduler.stats().num_preemptions == 0


def test_a_request_that_may_outgrow_the_pool_is_waited_for() -> None:
    scheduler = make_scheduler(num_blocks=2, block_size=2)
    add(scheduler, [1, 2, 3], request_id="a", max_tokens=8)
    plans = [scheduler.schedule(), scheduler.schedule()]
    scheduler.update(answer(plans[0]))
    assert waits(scheduler)
    assert finish_reasons(scheduler.update(answer(plans[1], EOS))) == {"a": FinishReason.STOP}


def test_a_place_among_the_samples_is_not_one_among_the_requests() -> None:
    scheduler = make_scheduler(budget=8, long=8)
    add(scheduler, list(range(20, 30)), request_id="long", max_tokens=4)
    scheduler.update(answer(scheduler.schedule()))
    add(scheduler, 8, request_id="short", max_tokens=4)
    plan = scheduler.schedule()
    assert [(request.request_id, request.samples) for request in plan.requests] == [
        ("short", False),
        ("long", True),
    ]
    assert scheduler.schedule().requests[0].token_ids == [sampled_before(0)]


def test_a_block_is_found_once_its_pending_token_is_known() -> None:
    scheduler = make_scheduler(block_size=2)
    add(scheduler, [1, 2, 3], request_id="a", max_tokens=2)
    plans = [scheduler.schedule(), scheduler.schedule()]  # the second fills a block with a pending token
    for plan in plans:
        scheduler.update(answer(plan))
    add(scheduler, [1, 2, 3, 50, 9], request_id="b", max_tokens=1)
    assert [request.num_computed_tokens for request in scheduler.schedule().requests] == [4]


def test_an_abort_frees_blocks_while_two_steps_are_in_flight() -> None:
    scheduler = make_scheduler()
    add(scheduler, 3, request_id="a", max_tokens=8)
    plans = [scheduler.schedule(), scheduler.schedule()]
    scheduler.abort("a")
    assert scheduler.stats().kv_usage == 0.0
    add(scheduler, 5, request_id="a", max_tokens=1)  # the id is free again
    assert finish_reasons(scheduler.update(answer(plans[0]))) == {"a": FinishReason.ABORT}
    plans.append(scheduler.schedule())
    assert scheduler.update(answer(plans[1])) == []
    assert finish_reasons(scheduler.update(answer(plans[2]))) == {"a": FinishReason.LENGTH}
    scheduler.check()
    assert not scheduler.has_work


def test_what_was_planned_on_a_failed_step_starts_again() -> None:
    scheduler = make_scheduler(budget=4, block_size=2)
    add(scheduler, [1, 2, 3, 4], request_id="a", max_tokens=8)
    add(scheduler, [1, 2, 5], request_id="b", max_tokens=1)
    first = scheduler.schedule()
    second = scheduler.schedule()
    assert {r.request_id: r.num_computed_tokens for r in second.requests} == {"a": 4, "b": 2}
    assert finish_reasons(scheduler.update(StepResult(error="out of memory"))) == {"a": FinishReason.ERROR}
    scheduler.check()
    assert scheduler.update(answer(second)) == []
    scheduler.check()
    third = scheduler.schedule()
    assert {r.request_id: r.num_computed_tokens for r in third.requests} == {"b": 0}
    assert first.requests[0].request_id == "a"
    assert finish_reasons(scheduler.update(answer(third))) == {"b": FinishReason.LENGTH}
    assert not scheduler.has_work
