"""Stop strings, against a search of the whole text so far."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker_runtime.server.stop_strings import START, Found, StopStrings

STRINGS = st.lists(st.text("ab\u4e2d", min_size=1, max_size=6), min_size=1, max_size=12)
PIECES = st.lists(st.tuples(st.text("ab\u4e2d", max_size=6), st.booleans()), max_size=12)


def first_stop(text: str, stop: Sequence[str], num_old: int) -> tuple[int, int, str] | None:
    """Start, end and string of what is complete first behind the first characters, string by string."""
    found = [(text.find(string, max(0, num_old + 1 - len(string))), string) for string in stop]
    ends = [(start + len(string), start, string) for start, string in found if start >= 0]
    if not ends:
        return None
    end, start, string = min(ends)
    return start, end, string


def possible_stop(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of a text that a longer stop string begins with."""
    longest = min(max(len(string) for string in stop) - 1, len(text))
    for size in range(longest, 0, -1):
        tail = text[len(text) - size :]
        if any(string.startswith(tail) and string != tail for string in stop):
            return size
    return 0


@settings(max_examples=500)
@given(strings=STRINGS, pieces=PIECES)
def test_a_growing_text_is_held_back_and_ended_as_a_search_string_by_string_would(
    strings: list[str], pieces: list[tuple[str, bool]]
) -> None:
    stops, state, held = StopStrings(strings), START, ""
    for piece, is_searched in pieces:
        text = held + piece
        want = first_stop(text, strings, len(held)) if is_searched else None
        state, found = stops.advance(state, piece, is_searched=is_searched)
        if want is None:
            assert found is None
            held = text[len(text) - possible_stop(text, strings) :]
            assert state[1] == len(held)
        else:
            start, end, _ = want
            assert found == Found(end - len(held), end - start)
            return


@given(strings=STRINGS, texts=st.lists(st.text("ab\u4e2d", max_size=12), max_size=4))
def test_what_one_text_has_taught_the_automaton_changes_no_other_text(
    strings: list[str], texts: list[str]
) -> None:
    shared = StopStrings(strings)
    for text in texts:
        fresh = StopStrings(strings).advance(START, text, is_searched=True)
        assert shared.advance(START, text, is_searched=True) == fresh


@pytest.mark.parametrize(
    ("strings", "text", "want"),
    [
        pytest.param(["c", "bc", "x"], "abc", Found(3, 2), id="the-longer-of-two-that-end-together"),
        pytest.param(["abcd", "bc"], "abc", Found(3, 2), id="inside-the-beginning-of-another"),
        pytest.param(["abcd", "c"], "abcd", Found(3, 1), id="the-first-to-be-complete"),
        pytest.param(["ab", "ab"], "ab", Found(2, 2), id="twice"),
        pytest.param(["x"], "abc", None, id="none"),
        pytest.param([], "abc", None, id="no-strings"),
    ],
)
def test_where_a_text_ends(strings: list[str], text: str, want: Found | None) -> None:
    assert StopStrings(strings).advance(START, text, is_searched=True)[1] == want


def test_many_long_strings_that_a_text_almost_completes_do_not_add_up() -> None:
    strings = ["a" * 2_000 + chr(0x4E00 + number) for number in range(2_000)]
    began = time.thread_time()

    stops = StopStrings(strings)
    state, found = stops.advance(START, ("a" * 2_500 + "b") * 3, is_searched=True)

    # A search string by string takes some 100 ms for each token of such a text.
    assert time.thread_time() - began < 2.0
    assert (state, found) == (START, None)
    assert stops.advance(START, "a" * 2_500 + chr(0x4E00 + 7), is_searched=True)[1] == Found(2_501, 2_001)
