"""The kernel picks what the sampler picks without it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_builders import make_sampling

from stoker_runtime.core.step import SampledToken, ScheduledRequest
from stoker_runtime.model.cuda.pick import pick
from stoker_runtime.model.cuda.picker import CudaPicker
from stoker_runtime.model.picker import Picker, TorchPicker
from stoker_runtime.model.sampler import sample


def scheduled(index: int, **sampling: Any) -> ScheduledRequest:
    return ScheduledRequest(
        request_id=str(index),
        token_ids=[1],
        num_computed_tokens=index,
        block_ids=[0],
        samples=True,
        sampling=make_sampling(**sampling),
        seed=17,
        prompt_token_ids=[1, 2],
        output_token_ids=[3],
        masked_token_ids=(0,),
    )


options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-5, 0.01, 0.3, 1.0, 2.0, 100.0]),
        "min_p": st.sampled_from([0.0, 0.0, 0.1, 0.9, 1.0]),
        "top_k": st.sampled_from([0, 0, 1, 3, 100, 4097, 2**40]),
        "top_p": st.sampled_from([1.0, 1.0, 0.999, 0.7, 0.1, 1e-9, 1e-300]),
        "presence_penalty": st.sampled_from([0.0, 1.5]),
        "logprobs": st.sampled_from([None, None, 0, 3]),
    }
)
sizes = st.sampled_from([1, 5, 100, 4095, 4096, 4097, 10_000])
interpreted = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)


def chosen_by(picker: Picker, logits: torch.Tensor, requests: list[ScheduledRequest]) -> list[SampledToken]:
    return sample(logits.clone(), requests, picker).tokens()


@interpreted
@given(
    wanted=st.lists(options, min_size=1, max_size=5),
    size=sizes.filter(lambda size: size > 3),  # the builder's requests name tokens up to 3
    seed=st.integers(0, 1000),
    bad=st.sampled_from([None, None, math.nan, math.inf]),
)
def test_picked_tokens_are_the_samplers(
    device: torch.device, wanted: list[dict[str, Any]], size: int, seed: int, bad: float | None
) -> None:
    requests = [scheduled(index, **sampling) for index, sampling in enumerate(wanted)]
    logits = 4 * torch.randn(len(requests), size, generator=torch.Generator().manual_seed(seed)).to(device)
    if bad is not None:
        logits[0, size // 2] = bad
    expected = chosen_by(TorchPicker(), logits, requests)
    found = chosen_by(CudaPicker(), logits, requests)
    assert found == expected
    assert (found[0].error is not None) == (bad is not None)
    assert all(token.error is None for token in found[1:])


@interpreted
@given(
    wanted=st.lists(options, min_size=1, max_size=4),
    size=sizes,
    seed=st.integers(0, 1000),
    num_levels=st.integers(1, 4),
    num_ruled_out=st.integers(0, 3),
)
def test_of_equal_logits_the_same_are_kept(
    device: torch.device,
    wanted: list[dict[str, Any]],
    size: int,
    seed: int,
    num_levels: int,
    num_ruled_out: int,
) -> None:
    # Away from round numbers: 70 of 100 equal tokens are at 0.7 or one token off it, as rounding decides.
    wanted = [sampling | {"top_p": min(1.0, 1.0017 * sampling["top_p"])} for sampling in wanted]
    requests = [scheduled(index, **sampling) for index, sampling in enumerate(wanted)]
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(num_levels, (len(requests), size), generator=generator).float()
    logits[:, 1 : 1 + num_ruled_out] = -math.inf
    logits = logits.to(device)
    expected = TorchPicker().pick(logits.clone(), requests).tolist()
    assert CudaPicker().pick(logits.clone(), requests).tolist() == expected


def test_rows_that_are_not_finite_fail_alone(device: torch.device) -> None:
    logits = torch.randn(5, 5000, generator=torch.Generator().manual_seed(1)).to(device)
    logits[0, 4999], logits[1], logits[2, 7], logits[3] = math.nan, -math.inf, math.inf, math.nan
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 5, "top_p": 0.5, "min_p": 0.1}):
        requests = [scheduled(index, **sampling) for index in range(5)]
        picked = CudaPicker().pick(logits.clone(), requests).tolist()
        assert picked[:4] == [-1] * 4
        assert picked[4] == TorchPicker().pick(logits[4:].clone(), requests[4:]).item()


def test_what_is_kept_is_drawn_as_often_as_it_is_likely(device: torch.device) -> None:
    count = 100
    logits = torch.full((count, 4100), -3.0)
    logits[:, [7, 4098]] = torch.tensor([math.log(0.6), math.log(0.3)])
    requests = [scheduled(index, temperature=1.0, top_k=2) for index in range(count)]
    picked = CudaPicker().pick(logits.to(device), requests).tolist()
    assert set(picked) == {7, 4098}
    # 67 on average, with a deviation of 5
    assert 50 <= picked.count(7) <= 84


def test_of_equal_logits_the_first_is_the_most_likely(device: torch.device) -> None:
    logits = torch.zeros(2, 9000, device=device)
    logits[1, [4500, 8999]] = 3.0
    settings = torch.tensor([[0.0, 0.0, 0.5, 0, 1.0]] * 2, dtype=torch.float64, device=device)
    assert pick(logits, settings).tolist() == [0, 4500]


@pytest.mark.parametrize(("place", "token"), [(1e-9, 1), (0.2499, 1), (0.2501, 5000), (1 - 2**-33, 5000)])
def test_places_lie_in_the_cumulative_distribution(device: torch.device, place: float, token: int) -> None:
    logits = torch.full((1, 9000), -math.inf, device=device)
    logits[0, 1], logits[0, 5000] = math.log(0.25), math.log(0.75)
    settings = torch.tensor([[1.0, -math.inf, place, 0, 1.0]], dtype=torch.float64, device=device)
    assert pick(logits, settings).tolist() == [token]
