"""Measured times decide as the margin says, whatever they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_runtime.model.cuda.choices import (
    FEWEST_MANY_ROWS,
    MARGIN,
    Choice,
    Decision,
    is_sound,
    many_rows,
    pick,
    summary,
)

NAMES = ("a", "b", "c", "d")
CHOICE = Choice("product", "8 x 8", NAMES)
all_times = st.dictionaries(st.sampled_from(NAMES), st.floats(1e-6, 10.0))


@given(seconds=all_times)
def test_the_default_is_left_only_for_what_is_faster_by_the_margin(seconds: dict[str, float]) -> None:
    taken = pick(CHOICE, seconds)
    fastest = min(seconds.values(), default=0.0)
    if taken == "a":
        assert "a" not in seconds or fastest >= seconds["a"] * (1 - MARGIN)
    else:
        assert seconds[taken] == fastest < seconds["a"] * (1 - MARGIN)


@given(seconds=all_times, noise=st.lists(st.floats(-0.02, 0.02), min_size=4, max_size=4))
def test_noise_does_not_leave_the_default_for_candidates_as_fast(
    seconds: dict[str, float], noise: list[float]
) -> None:
    noisy = {name: (1 + away) * 1e-3 for name, away in zip(NAMES, noise, strict=True)}
    assert pick(CHOICE, noisy) == "a"
    # and what is decided does not depend on the order in which times came
    assert pick(CHOICE, dict(reversed(seconds.items()))) == pick(CHOICE, seconds)


@given(seconds=all_times, factor=st.sampled_from([0.5, 2.0, 1024.0]))
def test_the_unit_of_time_does_not_matter(seconds: dict[str, float], factor: float) -> None:
    assert pick(CHOICE, {name: time * factor for name, time in seconds.items()}) == pick(CHOICE, seconds)


@given(seconds=all_times)
def test_what_was_decided_by_times_is_sound(seconds: dict[str, float]) -> None:
    assert is_sound(Decision(CHOICE, pick(CHOICE, seconds), seconds))


@pytest.mark.parametrize(
    "decision",
    [
        pytest.param(Decision(CHOICE, "e"), id="no-candidate"),
        pytest.param(Decision(replace(CHOICE, candidates=()), "a"), id="no-candidates"),
        pytest.param(Decision(CHOICE, "b", {"a": 1.0, "b": 0.99}), id="within-the-margin"),
        pytest.param(Decision(CHOICE, "b"), id="without-times"),
        pytest.param(Decision(CHOICE, "a", {"a": 1.0, "e": 2.0}), id="a-time-of-nothing"),
        pytest.param(Decision(CHOICE, "a", {"a": -1.0}), id="negative"),
        pytest.param(Decision(CHOICE, "a", {"a": float("inf")}), id="infinite"),
    ],
)
def test_other_decisions_are_not_sound(decision: Decision) -> None:
    assert not is_sound(decision)


@given(found=st.dictionaries(st.integers(FEWEST_MANY_ROWS, 600), st.booleans(), min_size=1))
def test_no_product_is_dequantized_below_the_first_that_was_faster_so(found: dict[int, bool]) -> None:
    border = many_rows(found)
    assert border >= FEWEST_MANY_ROWS
    for rows, is_dequantized in found.items():
        if rows < border:
            assert not is_dequantized
    behind = [rows for rows in sorted(found) if rows >= border]
    assert not behind or found[behind[0]]


def test_from_how_many_rows_on_weights_are_dequantized() -> None:
    measured = (32, 64, 128)
    found = [many_rows(dict(zip(measured, row, strict=True))) for row in (
        (False, False, True), (False, False, False), (True, True, True), (False, True, False)
    )]  # fmt: skip
    assert found == [65, 129, FEWEST_MANY_ROWS, 33]


def test_a_line_says_what_was_taken_and_why() -> None:
    other = Choice("attention", "", ("triton", "sdpa"))
    text = summary(
        [
            Decision(CHOICE, "b", {"a": 0.002, "b": 0.001}, {"c": "differs from a by 0.3"}),
            Decision(other, "triton", {"triton": 1.0}),
            Decision(replace(other, name="rest"), "triton"),
        ],
        known=[other],
    )
    assert text == (
        "product: b (a: 2.000 ms, b: 1.000 ms, c: differs from a by 0.3); "
        "attention: triton (measured before: triton: 1000.000 ms); rest: triton (not measured)"
    )
