"""Mixtures on a device: choices, groups and grouped products equal mlp.Experts in double precision."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_references import choose_reference, make_mixture, mixture_reference
from torch import Tensor

from stoker_runtime.model.cuda.experts import answer
from stoker_runtime.model.cuda.routing import (
    Choices,
    choose_experts,
    group_by_expert,
    most_tiles,
    rows_per_tile,
)

TOLERANCE = {torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}
FIXED_DEVICE = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=10 if "TRITON_INTERPRET" in os.environ else 25,  # interpreted, each takes a second
)
# (experts, experts of a row)
COUNTS = st.integers(1, 40).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, min(count, 8))))


def make_scores(
    num_rows: int, count: int, num_levels: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Scores of few levels, so that many are equal."""
    generator = torch.Generator().manual_seed(num_rows + count)
    return (torch.randint(num_levels, (num_rows, count), generator=generator) / 4).to(device, dtype)


def make_slots(num_rows: int, num_padding: int, device: torch.device) -> Tensor:
    slots = [*range(num_rows - num_padding), *[-1] * num_padding]
    return torch.tensor(slots, dtype=torch.int32, device=device)


@FIXED_DEVICE
@given(
    num_rows=st.integers(1, 9),
    counts=COUNTS,
    num_levels=st.sampled_from([1, 3, 50]),
    num_padding=st.integers(0, 1),
    normalizes_weights=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_choices_equal_the_reference(
    device: torch.device,
    num_rows: int,
    counts: tuple[int, int],
    num_levels: int,
    num_padding: int,
    normalizes_weights: bool,
    dtype: torch.dtype,
) -> None:
    scores = make_scores(num_rows, counts[0], num_levels, dtype, device)
    choices = choose_experts(scores, make_slots(num_rows, num_padding, device), counts[1], normalizes_weights)
    experts, weights = choose_reference(scores, counts[1], normalizes_weights)
    num_computed = num_rows - num_padding
    assert torch.equal(choices.experts[:num_computed].long(), experts[:num_computed])
    assert bool((choices.experts[num_computed:] == -1).all())
    torch.testing.assert_close(choices.weights, weights.to(dtype))
    of_each = torch.bincount(experts[:num_computed].flatten(), minlength=counts[0])
    assert torch.equal(choices.counts.long(), of_each)


@FIXED_DEVICE
@given(
    num_rows=st.integers(1, 200),
    counts=COUNTS,
    num_levels=st.sampled_from([1, 3, 50]),
    padding=st.floats(0, 1),
)
def test_groups_hold_each_pair_once_in_order(
    device: torch.device, num_rows: int, counts: tuple[int, int], num_levels: int, padding: float
) -> None:
    scores = make_scores(num_rows, counts[0], num_levels, torch.float32, device)
    slots = make_slots(num_rows, int(padding * num_rows), device)
    choices = choose_experts(scores, slots, counts[1], False)
    groups = group_by_expert(choices)
    experts = choices.experts.flatten().tolist()
    wanted = sorted((expert, pair) for pair, expert in enumerate(experts) if expert >= 0)
    assert groups.pairs[: len(wanted)].tolist() == [pair for _, pair in wanted]
    tiles = [
        (expert, start, end)
        for expert, start, end in zip(
            *(part.tolist() for part in (groups.tile_experts, groups.tile_starts, groups.tile_ends)),
            strict=True,
        )
        if expert >= 0
    ]
    assert groups.tile_experts.tolist()[len(tiles) :] == [-1] * (len(groups.tile_experts) - len(tiles))
    borders = [0, *(end for _, _, end in tiles)]
    assert borders[-1] == len(wanted)
    for (expert, start, end), (before, behind) in zip(tiles, pairwise(borders), strict=True):
        assert (start, end) == (before, behind)
        assert 0 < end - start <= groups.rows_per_tile
        assert {found for found, _ in wanted[start:end]} == {expert}


@given(num_pairs=st.integers(1, 5000), num_experts=st.integers(1, 300), data=st.data())
def test_tiles_are_enough_however_pairs_are_spread(
    num_pairs: int, num_experts: int, data: st.DataObject
) -> None:
    tile = rows_per_tile(num_pairs, num_experts)
    assert tile in (16, 32, 64, 128)
    cuts = sorted(
        data.draw(st.lists(st.integers(0, num_pairs), min_size=num_experts - 1, max_size=num_experts - 1))
    )
    needed = sum(-(-(end - start) // tile) for start, end in pairwise([0, *cuts, num_pairs]))
    assert needed <= most_tiles(num_pairs, num_experts, tile)


@FIXED_DEVICE
@given(
    num_rows=st.one_of(st.integers(1, 12), st.sampled_from([40, 90])),
    counts=st.sampled_from([(1, 1), (4, 2), (9, 8), (24, 3)]),
    sizes=st.sampled_from([(64, 64), (128, 128), (70, 33), (16, 130)]),
    activation=st.sampled_from(["silu", "gelu_tanh"]),
    normalizes_weights=st.booleans(),
    num_padding=st.integers(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_answers_equal_the_reference(
    device: torch.device,
    num_rows: int,
    counts: tuple[int, int],
    sizes: tuple[int, int],
    activation: Literal["silu", "gelu_tanh"],
    normalizes_weights: bool,
    num_padding: int,
    dtype: torch.dtype,
) -> None:
    if dtype == torch.bfloat16 and device.type == "cpu":
        dtype = torch.float32  # the interpreter multiplies bfloat16 wrongly
    mixture = make_mixture(counts, sizes, activation, normalizes_weights, dtype, device)
    generator = torch.Generator().manual_seed(num_rows)
    rows = torch.randn(num_rows, sizes[0], generator=generator).to(device, dtype)
    scores = make_scores(num_rows, counts[0], 3, dtype, device)
    found = answer(mixture, rows, scores, make_slots(num_rows, num_padding, device))
    expected = mixture_reference(mixture, rows, scores)
    expected[num_rows - num_padding :] = 0
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_row_that_is_not_finite_stays_so_and_alone(device: torch.device) -> None:
    mixture = make_mixture((6, 2), (64, 48), "silu", True, torch.float32, device)
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(device)
    scores = make_scores(5, 6, 50, torch.float32, device)
    slots = make_slots(5, 0, device)
    expected = answer(mixture, rows, scores, slots)
    scores[1], scores[3, 2] = float("nan"), float("inf")
    found = answer(mixture, rows, scores, slots)
    assert found.isfinite().all(dim=1).tolist() == [True, False, True, False, True]
    assert torch.equal(found[::2], expected[::2])


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_nothing_waits_for_the_host(device: torch.device) -> None:
    mixture = make_mixture((6, 2), (64, 48), "silu", True, torch.float16, device)
    rows, scores = torch.randn(5, 64).to(device, torch.float16), torch.randn(5, 6).to(device, torch.float16)
    slots = make_slots(5, 1, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        answer(mixture, rows, scores, slots)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_choices_are_what_the_groups_are_made_of(device: torch.device) -> None:
    experts = torch.tensor([[0, 2], [-1, -1], [1, 2]], dtype=torch.int32, device=device)
    counts = torch.tensor([1, 1, 2], dtype=torch.int32, device=device)
    groups = group_by_expert(Choices(experts, torch.ones(3, 2, device=device), counts))
    assert groups.pairs[:4].tolist() == [0, 4, 1, 5]
    assert groups.tile_experts.tolist()[:3] == [0, 1, 2]
    assert groups.tile_starts.tolist()[:3] == [0, 1, 2]
    assert groups.tile_ends.tolist()[:3] == [1, 2, 4]
