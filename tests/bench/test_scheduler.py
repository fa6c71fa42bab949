"""What bench/scheduler.py shows of the policy that is served, held to its bars."""

from __future__ import annotations

import pytest

import scheduler
from loadgen.results import distribution
from stoker_runtime.config import EngineConfig
from stoker_runtime.engine.engine import budgets_of


def test_the_simulated_policy_is_the_one_that_is_served() -> None:
    config = EngineConfig(model="/model").for_device("cpu")
    assert budgets_of(config, scheduler.CPU.max_model_len) == scheduler.CPU


@pytest.mark.parametrize("concurrency", [1, 8, 24])
@pytest.mark.parametrize("seed", [1, 2])
def test_conversations_find_nearly_all_achievable_prefix_hits(concurrency: int, seed: int) -> None:
    assert scheduler.found_share(scheduler.CPU, concurrency, seed) >= 0.95


def test_a_long_prompt_does_not_stretch_the_gaps_of_streams_beyond_two_and_a_half_times() -> None:
    result = scheduler.simulate(scheduler.beside_streams(), 8, scheduler.CPU, is_caching=False)
    gaps = distribution(result.gaps)
    assert gaps is not None
    assert gaps.p99 <= 2.5 * gaps.p50


def test_mixed_lengths_lose_no_throughput_to_the_limit_beside_decodes() -> None:
    shapes = scheduler.unlike([(16 + 71 * number % 497, 16 + 37 * number % 113) for number in range(128)])
    served, unlimited = (
        scheduler.simulate(shapes, 32, scheduler.POLICIES[name], is_caching=False)
        for name in ("as served", "neither")
    )
    assert served.now <= 1.05 * unlimited.now
