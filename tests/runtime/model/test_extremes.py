"""Sampling parameters of any finite size: each row gets a sane token, and the step never fails."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampler_builders import all_pickers, make_row, sample_with

from stoker_runtime.core.step import ScheduledRequest
from stoker_runtime.model.picker import Picker

HUGE = 1.7e308
sizes = st.sampled_from([0.0, 1e-308, -1e-308, 1e-5, 1.0, -1.0, 1e6, 1e30, -1e38, 1e39, HUGE, -HUGE])
positive = st.sampled_from([5e-324, 1e-308, 1e-40, 1e-5, 1.0, 1.5, 1e6, 1e38, 1e39, HUGE])
options = st.fixed_dictionaries(
    {
        "temperature": st.just(0.0) | positive,
        "repetition_penalty": positive,
        "presence_penalty": sizes,
        "frequency_penalty": sizes,
        "logit_bias": st.dictionaries(st.integers(0, 7), sizes, max_size=3),
        "seed": st.integers(-(2**63), 2**64 - 1),
        "top_k": st.sampled_from([0, 1, 3, 8, 2**31, 2**62]),
        "top_p": st.sampled_from([5e-324, 0.5, 1.0]),
        "min_p": st.sampled_from([0.0, 5e-324, 1.0]),
    }
)


@pytest.fixture(params=["pytorch", "kernels", "interpreter"])
def picker(request: pytest.FixtureRequest) -> Picker:
    if request.param not in all_pickers():
        pytest.skip("not on this machine")
    return all_pickers()[request.param]


def pick(picker: Picker, logits: torch.Tensor, *rows: ScheduledRequest) -> list[int]:
    return [token.token_id for token in sample_with(picker, logits.clone(), rows)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sampling=options, scale=st.sampled_from([0.0, 1.0, 1e4, 1e37]))
def test_any_size_gives_a_token(picker: Picker, sampling: dict[str, Any], scale: float) -> None:
    logits = torch.linspace(-1.0, 1.0, 8).repeat(2, 1) * scale
    odd = make_row("odd", prompt=[0, 1, 7], output=[1, 1, 2, 6], masked=(5,), logprobs=8, **sampling)
    first, second = sample_with(picker, logits, [odd, make_row("good")])
    assert first.error is None
    assert first.token_id in {0, 1, 2, 3, 4, 6, 7}
    assert first.logprob is not None
    assert not any(math.isnan(value) for value in (first.logprob.logprob, *(v for _, v in first.logprob.top)))
    assert (second.token_id, second.error) == (0 if scale == 0 else 7, None)


@pytest.mark.parametrize("temperature", [1e6, 1e300])
def test_a_hot_draw_is_uniform_over_what_is_not_ruled_out(picker: Picker, temperature: float) -> None:
    logits = torch.tensor([[30.0, -30.0, 0.0, 5.0]])
    rows = [make_row(position=i, temperature=temperature, masked=(0,)) for i in range(1, 100)]
    picked = pick(picker, logits.repeat(99, 1), *rows)
    counts = [picked.count(token) for token in range(4)]
    assert counts[0] == 0
    assert min(counts[1:]) > 15


def test_a_penalty_that_float32_cannot_hold_prefers_what_was_seen(picker: Picker) -> None:
    logits = torch.tensor([[2.0, 5.0, 1.0]])
    assert pick(picker, logits, make_row(repetition_penalty=1e-300, prompt=[2, 2])) == [2]
    both = make_row(frequency_penalty=HUGE, presence_penalty=-HUGE, output=[1, 1])
    assert pick(picker, logits, both) == [0]
