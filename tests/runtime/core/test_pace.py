"""How many prompt tokens join decodes, on machines made up for it and in the steps of an engine."""

from __future__ import annotations

import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime_builders import FakeRunner, make_engine_config, make_request
from scheduler_builders import add, answer, make_scheduler

from stoker_runtime.config import EngineConfig
from stoker_runtime.core.pace import LEAST, MOST, PrefillPace
from stoker_runtime.core.step import StepPlan, StepResult
from stoker_runtime.engine.engine import Engine


def follow(pace: PrefillPace, decode_s: float, token_s: float, num_decodes: int = 8, steps: int = 20) -> int:
    """Take steps without prompts and with them; returns what the last ones may have."""
    for _ in range(steps):
        pace.observe(num_decodes, 0, decode_s)
    for _ in range(steps):
        tokens = pace.tokens(num_decodes)
        pace.observe(num_decodes, tokens, decode_s + tokens * token_s)
    return pace.tokens(num_decodes)


@pytest.mark.parametrize(
    ("decode_s", "token_s", "expected"),
    [
        pytest.param(0.010, 0.00030, 30, id="what-the-decodes-take"),
        pytest.param(0.006, 0.00025, 22, id="fast-memory"),
        pytest.param(0.020, 0.00010, MOST, id="no-more-than-the-most"),
        pytest.param(0.001, 0.00100, LEAST, id="no-fewer-than-the-least"),
        pytest.param(0.010, 0.0, MOST, id="too-fast-to-tell"),
    ],
)
def test_tokens_stretch_a_step_as_far_as_they_may(decode_s: float, token_s: float, expected: int) -> None:
    assert follow(PrefillPace(32, 190, 8), decode_s, token_s) == expected


def test_until_both_are_known_the_first_number_counts() -> None:
    pace = PrefillPace(32, 190, 8)
    assert pace.tokens(8) == 32
    pace.observe(8, 20, 0.02)  # nothing to compare it with
    pace.observe(8, 0, 0.01)
    assert pace.tokens(8) == 32
    pace.observe(8, 1, 0.5)  # too few tokens to tell
    assert pace.tokens(8) == 32
    pace.observe(8, 20, 0.02)
    assert pace.tokens(8) == 18


def test_the_number_grows_step_by_step() -> None:
    pace = PrefillPace(32, 190, 8)
    pace.observe(8, 0, 0.01)
    pace.observe(8, 20, 0.011)  # as if they had filled what is computed anyway
    assert pace.tokens(8) == 30


def test_disturbed_steps_change_little_and_a_slower_machine_much() -> None:
    pace = PrefillPace(32, 190, 8)
    calm = follow(pace, 0.01, 0.0003)
    for _ in range(4):
        pace.observe(8, calm, 0.2)
        pace.observe(8, 0, 0.1)
    assert pace.tokens(8) == calm
    assert follow(pace, 0.01, 0.0005) == 18


def test_steps_of_many_decodes_are_not_followed() -> None:
    pace = PrefillPace(32, 190, 8)
    follow(pace, 0.01, 0.001, num_decodes=9)
    assert pace.tokens(9) == pace.tokens(8) == 32


def test_as_many_decodes_as_come_next_stand_for_those_that_were_not_seen() -> None:
    pace = PrefillPace(32, 190, 8)
    follow(pace, 0.01, 0.0003)
    assert pace.tokens(7) == pace.tokens(1) == 30
    follow(pace, 0.005, 0.0003, num_decodes=1)
    assert (pace.tokens(1), pace.tokens(3), pace.tokens(6)) == (LEAST, LEAST, 30)
    pace.observe(6, 0, 0.01)  # what prompt tokens cost beside so many is still not known
    assert pace.tokens(6) == 30


@given(
    st.lists(
        st.tuples(st.integers(1, 10), st.integers(0, 100), st.floats(0, 10, allow_nan=False)), max_size=60
    )
)
def test_whatever_the_clock_says_prompts_go_on_and_decodes_are_not_held_up(
    steps: list[tuple[int, int, float]],
) -> None:
    pace = PrefillPace(32, 190, 8)
    for num_decodes, num_prompt_tokens, duration_s in steps:
        pace.observe(num_decodes, num_prompt_tokens, duration_s)
        assert LEAST <= pace.tokens(num_decodes) <= MOST


def step_s(plan: StepPlan, noise: random.Random) -> float:
    prompts = [len(r.token_ids) for r in plan.requests if len(r.token_ids) > 1]
    return (0.008 + 0.0004 * sum(prompts)) * noise.uniform(0.95, 1.05)


def test_a_scheduler_lets_a_long_prompt_stretch_steps_as_far_as_asked() -> None:
    """A context costs nothing on this machine, though it is charged: what is followed makes up for it."""
    scheduler = make_scheduler(
        budget=256, max_model_len=4096, num_blocks=2000, beside=48, price=1536, long=64, few=8, stretch=190
    )
    noise = random.Random(1)
    add(scheduler, 4, request_id="stream", max_tokens=2000, ignore_eos=True)
    alone, beside = [], []
    for index in range(400):
        if index == 100:
            add(scheduler, 3000, request_id="long", max_tokens=1)
        plan = scheduler.schedule()
        duration_s = step_s(plan, noise)
        scheduler.update(answer(plan), duration_s)
        if index >= 130 and len(plan.requests) == 2 and len(plan.requests[1].token_ids) > 4:
            beside.append(duration_s)
        elif 1 < index < 100:
            alone.append(duration_s)
    assert len(beside) > 50
    assert 1.8 < median(beside) / median(alone) < 2.0


@pytest.mark.parametrize(("given_limit", "is_followed"), [(0, True), (40, False)])
def test_an_engine_times_its_steps_unless_the_limit_was_given(given_limit: int, is_followed: bool) -> None:
    now_s = 0.0

    class TimedRunner(FakeRunner):
        def step(self, plan: StepPlan) -> StepResult:
            nonlocal now_s
            now_s += step_s(plan, random.Random(1))
            return super().step(plan)

    runner = TimedRunner(num_blocks=400, max_model_len=2000)
    config = make_engine_config(
        max_num_seqs=8, max_num_batched_tokens=256, max_prefill_tokens_beside_decodes=given_limit
    )
    engine = Engine(runner, config, hash_key=b"k" * 16, clock=lambda: now_s)
    engine.add(make_request([1], request_id="stream", max_tokens=400))
    for _ in range(20):
        engine.step()
    engine.add(make_request([2] * 1500, request_id="long", max_tokens=1))
    times_s = []
    for _ in range(20):
        before_s = now_s
        engine.step()
        times_s.append(now_s - before_s)
    stretch = times_s[-1] / step_s(StepPlan([]), random.Random(1))
    wanted = EngineConfig(model="/model").for_device("cpu").prefill_stretch / 100
    assert (abs(stretch - wanted) < 0.05) is is_followed
