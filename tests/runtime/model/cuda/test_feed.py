"""Tokens that only the device knows go into the next step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker_runtime.core.step import sampled_before
from stoker_runtime.model.cuda.feed import feed


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    sampled=st.lists(st.integers(-1, 2**31 - 1), min_size=1, max_size=300),
    rows=st.lists(st.one_of(st.integers(0, 2**31 - 1), st.none()), min_size=1, max_size=600),
    data=st.data(),
)
def test_placeholders_are_filled_in(
    device: torch.device, sampled: list[int], rows: list[int | None], data: Any
) -> None:
    places = [data.draw(st.integers(0, len(sampled) - 1)) if row is None else 0 for row in rows]
    token_ids = [
        sampled_before(place) if row is None else row for row, place in zip(rows, places, strict=True)
    ]
    expected = [
        max(0, sampled[place]) if row is None else row for row, place in zip(rows, places, strict=True)
    ]

    def integers(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    assert feed(integers(token_ids), integers(sampled)).tolist() == expected


@pytest.mark.parametrize("count", [1, 255, 256, 257])
def test_known_tokens_stay(device: torch.device, count: int) -> None:
    token_ids = torch.arange(count, dtype=torch.int32, device=device)
    assert torch.equal(feed(token_ids, token_ids), token_ids)
