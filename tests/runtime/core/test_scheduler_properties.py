"""Random traffic against random budgets: every request gets what it would get alone, and invariants hold.

FakeRunner's answers depend on every KV slot a request reads, so agreement with a run alone means that no
block was shared too early, written by two, or kept too short.
"""

from __future__ import annotations

from hypothesis import event, given
from hypothesis import strategies as st
from runtime_builders import FakeRunner, make_engine_config, make_request
from traffic_builders import Arrival, Machine, arrivals, assert_scored_once, machines, run, tokens_of

from stoker_runtime.engine.engine import Engine
from stoker_runtime.messages import FinishReason


@given(machine=machines, traffic=arrivals())
def test_every_request_gets_what_it_would_get_alone(machine: Machine, traffic: list[Arrival]) -> None:
    runner = machine.runner()
    engine = machine.engine(runner)
    outputs = run(engine, traffic)

    stats = engine.scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (0, 0, 0.0)
    num_scored = max((sum(item.num_scored for item in plan.requests) for plan in runner.plans), default=0)
    event(f"scored at once: {min(num_scored, 3)}")
    event(f"preempted: {stats.num_preemptions > 0}, shared: {stats.prefix_hits > 0}")
    for plan in runner.plans:
        assert plan.num_tokens <= machine.max_num_seqs + machine.extra_budget
        assert len(plan.requests) <= machine.max_num_seqs
    for arrival in traffic:
        request_id = arrival.request.request_id
        got = outputs[request_id]
        assert [output.finish_reason is None for output in got[:-1]] == [True] * (len(got) - 1)
        alone = run(machine.engine(machine.runner()), [Arrival(arrival.request, 0, None)])[request_id]
        assert_scored_once(arrival, got, alone)
        if got[-1].finish_reason is FinishReason.ABORT:
            assert tokens_of(got) == tokens_of(alone)[: len(tokens_of(got))]
        else:
            assert tokens_of(got) == tokens_of(alone)
            assert (got[-1].finish_reason, got[-1].error) == (alone[-1].finish_reason, alone[-1].error)


@given(machine=machines, traffic=arrivals())
def test_a_prompt_goes_on_where_it_stopped(machine: Machine, traffic: list[Arrival]) -> None:
    runner = machine.runner()
    run(machine.engine(runner), [Arrival(arrival.request, arrival.at_step, None) for arrival in traffic])
    computed: dict[str, int] = {}
    for plan in runner.plans:
        for item in plan.requests:
            # It goes on where it stopped, or starts again after a prefix because it was preempted.
            goes_on = item.num_computed_tokens == computed.get(item.request_id, 0)
            assert goes_on or item.num_computed_tokens % machine.block_size == 0
            computed[item.request_id] = item.num_computed_tokens + len(item.token_ids)


@given(prompts=st.lists(st.integers(1, 40), min_size=2, max_size=6), extra_budget=st.integers(0, 10))
def test_decodes_keep_their_pace_while_long_prompts_arrive(prompts: list[int], extra_budget: int) -> None:
    runner = FakeRunner(num_blocks=200, max_model_len=200)
    config = make_engine_config(max_num_seqs=8, max_num_batched_tokens=8 + extra_budget)
    engine = Engine(runner, config, hash_key=b"k" * 16)
    engine.add(make_request([1], request_id="stream", max_tokens=100))
    engine.step()
    for number, length in enumerate(prompts):
        engine.add(make_request([number + 2] * length, request_id=f"prompt-{number}", max_tokens=4))
    num_steps = 0
    while engine.scheduler.stats().num_running + engine.scheduler.stats().num_waiting > 1:
        ids = [output.request_id for output in engine.step().outputs]
        assert "stream" in ids
        num_steps += 1
    assert num_steps <= sum(prompts) + 4 * len(prompts)
