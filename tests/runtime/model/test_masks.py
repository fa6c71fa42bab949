"""Tokens that are ruled out: what is not allowed, what completes a bad word, ends before min_tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampler_builders import all_pickers, make_row, sample_with

from stoker_runtime.core.step import SampledToken, ScheduledRequest
from stoker_runtime.model.masks import last_of_bad_words, ruled_out
from stoker_runtime.model.picker import Picker

LOGITS = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]


@pytest.fixture(params=["pytorch", "kernels", "interpreter"])
def picker(request: pytest.FixtureRequest) -> Picker:
    if request.param not in all_pickers():
        pytest.skip("not on this machine")
    return all_pickers()[request.param]


def sample(picker: Picker, *rows: ScheduledRequest) -> list[SampledToken]:
    return sample_with(picker, torch.tensor(LOGITS).repeat(len(rows), 1), rows)


def pick(picker: Picker, *rows: ScheduledRequest) -> list[int]:
    return [token.token_id for token in sample(picker, *rows)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"allowed_token_ids": (3, 5)}, 3, id="allowed"),
        pytest.param({"allowed_token_ids": (3, 5), "logit_bias": {5: 9.0, 0: 90.0}}, 5, id="bias"),
        pytest.param({"allowed_token_ids": (3, 5), "presence_penalty": 3.0, "output": [3]}, 5, id="penalty"),
        pytest.param({"allowed_token_ids": (3, 5), "masked": (3,)}, 5, id="min-tokens"),
        pytest.param({"allowed_token_ids": (3,), "masked": (3, 4)}, 3, id="only-ends-are-allowed"),
        pytest.param({"bad_words_token_ids": ((0,), (1,))}, 2, id="bad-tokens"),
        pytest.param({"bad_words_token_ids": ((4, 2, 0),), "output": [4, 2]}, 1, id="bad-word"),
        pytest.param({"bad_words_token_ids": ((4, 2, 0),), "output": [2, 4]}, 0, id="another-word"),
        pytest.param({"bad_words_token_ids": ((4, 2, 0),), "output": [2]}, 0, id="half-a-word"),
        pytest.param({"bad_words_token_ids": ((4, 0),), "prompt": [4]}, 0, id="output-only"),
        pytest.param(
            {"allowed_token_ids": (0, 3), "bad_words_token_ids": ((0,),), "masked": (3,)}, 3, id="all-three"
        ),
    ],
)
@pytest.mark.parametrize("limits", [{}, {"temperature": 0.01}, {"temperature": 1.0, "top_k": 1}], ids=str)
def test_the_most_likely_of_the_rest_is_picked(
    picker: Picker, fields: dict[str, Any], limits: dict[str, Any], expected: int
) -> None:
    # Neighbours that ask for nothing and for something else.
    other = make_row("other", allowed_token_ids=(5,), **limits)
    assert pick(picker, make_row(**limits), make_row(**fields, **limits), other) == [0, expected, 5]


def test_draws_are_of_the_allowed_tokens_only(picker: Picker) -> None:
    rows = [
        make_row(position=i, temperature=50.0, top_p=0.99, allowed_token_ids=(1, 4)) for i in range(1, 100)
    ]
    assert set(pick(picker, *rows)) == {1, 4}


@pytest.mark.parametrize(
    "fields",
    [
        {"allowed_token_ids": (0,), "bad_words_token_ids": ((0,),)},
        {"allowed_token_ids": ()},
        {"bad_words_token_ids": tuple((token,) for token in range(6))},
    ],
    ids=str,
)
def test_a_row_without_a_token_left_fails_alone(picker: Picker, fields: dict[str, Any]) -> None:
    first, second = sample(picker, make_row("bad", temperature=1.0, **fields), make_row("good"))
    assert "no token is left that may be picked" in str(first.error)
    assert (second.token_id, second.error) == (0, None)


@given(
    bad_words=st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=5),
    choices=st.lists(st.integers(0, 2), max_size=30),
)
def test_output_never_completes_a_bad_word(bad_words: list[list[int]], choices: list[int]) -> None:
    output: list[int] = []
    for token_id in choices:
        if token_id in last_of_bad_words(bad_words, output):
            assert any(contains([*output, token_id], word) for word in bad_words if word)
        else:
            output.append(token_id)
        assert not any(contains(output, word) for word in bad_words if word)


def contains(output: Sequence[int], word: Sequence[int]) -> bool:
    ends = range(len(word), len(output) + 1)
    return any(list(output[end - len(word) : end]) == list(word) for end in ends)


@given(
    allowed=st.none() | st.lists(st.integers(0, 5), min_size=1, unique=True),
    masked=st.lists(st.integers(0, 5), max_size=3, unique=True),
    bad=st.lists(st.integers(0, 5), max_size=3, unique=True),
)
def test_ends_stay_possible_only_where_nothing_else_is_allowed(
    allowed: list[int] | None, masked: list[int], bad: list[int]
) -> None:
    row = make_row(
        masked=tuple(masked),
        allowed_token_ids=None if allowed is None else tuple(allowed),
        bad_words_token_ids=tuple((token,) for token in bad),
    )
    rest = set(range(6) if allowed is None else allowed) - set(bad)
    expected = {*bad} if allowed is not None and rest <= set(masked) else {*bad, *masked}
    assert set(ruled_out(row)) == expected
