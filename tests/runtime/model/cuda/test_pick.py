"""The kernel picks what the sampler picks without it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_builders import make_sampling

from stoker_runtime.core.step import ScheduledRequest
from stoker_runtime.model.cuda.pick import pick
from stoker_runtime.model.cuda.picker import CudaPicker
from stoker_runtime.model.picker import TorchPicker
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
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "min_p": st.sampled_from([0.0, 0.1, 0.9]),
        "top_k": st.sampled_from([0, 0, 3]),
        "top_p": st.sampled_from([1.0, 1.0, 0.7]),
        "presence_penalty": st.sampled_from([0.0, 1.5]),
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    wanted=st.lists(options, min_size=1, max_size=5),
    size=st.sampled_from([5, 100, 4096, 4097, 10_000]),
    seed=st.integers(0, 1000),
    is_broken=st.booleans(),
)
def test_picked_tokens_are_the_samplers(
    device: torch.device, wanted: list[dict[str, Any]], size: int, seed: int, is_broken: bool
) -> None:
    requests = [scheduled(index, **sampling) for index, sampling in enumerate(wanted)]
    logits = 4 * torch.randn(len(requests), size, generator=torch.Generator().manual_seed(seed)).to(device)
    if is_broken:
        logits[0, size // 2] = math.nan
    expected = sample(logits.clone(), requests, TorchPicker())
    found = sample(logits.clone(), requests, CudaPicker())
    assert found == expected
    assert (found[0].error is not None) == is_broken


def test_of_equal_logits_the_first_is_the_most_likely(device: torch.device) -> None:
    logits = torch.zeros(2, 9000, device=device)
    logits[1, [4500, 8999]] = 3.0
    zeros = torch.zeros(2, device=device)
    assert pick(logits, zeros, zeros, zeros.double()).tolist() == [0, 4500]


@pytest.mark.parametrize(("place", "token"), [(1e-9, 1), (0.2499, 1), (0.2501, 5000), (1 - 2**-33, 5000)])
def test_places_lie_in_the_cumulative_distribution(device: torch.device, place: float, token: int) -> None:
    logits = torch.full((1, 9000), -math.inf, device=device)
    logits[0, 1], logits[0, 5000] = math.log(0.25), math.log(0.75)
    one = torch.ones(1, device=device)
    places = torch.tensor([place], dtype=torch.float64, device=device)
    assert pick(logits, one, -math.inf * one, places).tolist() == [token]
