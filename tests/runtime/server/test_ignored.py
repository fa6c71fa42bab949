from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_runtime.server.ignored import header_value, logged

ANY_TEXT = st.text(st.characters(), max_size=100)  # lone halves of surrogate pairs included
PLAIN = set(string.ascii_letters + string.digits + "_.-[]")


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (["cache_prompt"], "cache_prompt"),
        (["messages[0].id", "stream_options.x-y"], "messages[0].id,stream_options.x-y"),
        (["b", "a", "b"], "b,a"),
        (["a,b", "c d", "e\r\nset-cookie: x"], "a%2Cb,c%20d,e%0D%0Aset-cookie%3A%20x"),
        (["\u00e9", "\U0001f600", "\ud800"], "%C3%A9,%F0%9F%98%80,%ED%A0%80"),
        (["+1", "%41"], "%2B1,%2541"),
        ([""], "%22%22"),
        (["x" * 100], "x" * 64),
        (["x" * 64 + "a", "x" * 64 + "b"], "x" * 64),
        ([], ""),
    ],
)
def test_names_are_spelt_so_that_they_end_nothing(names: list[str], value: str) -> None:
    assert header_value(names) == value


def test_what_there_is_no_room_for_is_counted() -> None:
    names = [f"{index:060}" for index in range(100)]

    *shown, last = header_value(names).split(",")

    assert shown == names[:33]  # 33 * 61 is 2013, with the number 2016; one more is beyond 2048
    assert last == "+67"


def test_a_body_of_nothing_but_unknown_fields_is_counted() -> None:
    value = header_value([f"{index:x}" for index in range(300_000)])

    assert len(value) <= 2048
    assert int(value.rpartition("+")[2]) + value.count(",") == 300_000


def test_as_many_as_fit_need_no_count() -> None:
    names = [f"{index:063}" for index in range(32)]  # 32 * 64 - 1 is 2047
    assert header_value(names) == ",".join(names)


@given(st.lists(ANY_TEXT, max_size=80))
def test_every_value_is_visible_ascii_and_bounded(names: list[str]) -> None:
    value = header_value(names)

    entries = value.split(",") if value else []
    assert len(value) <= 2048
    assert all(character in PLAIN or character in "%," for character in value.rpartition("+")[0] or value)
    assert (value == "") == (names == [])
    assert all(entry for entry in entries)
    left = int(entries.pop()[1:]) if entries and entries[-1].startswith("+") else 0
    assert not any(entry.startswith("+") for entry in entries)
    assert len(set(entries)) == len(entries)
    assert len(entries) + left == len({name[:64] or '""' for name in names})


@given(st.lists(ANY_TEXT, max_size=200))
def test_a_log_line_has_a_bounded_list(names: list[str]) -> None:
    found = logged(names)

    assert len(found) <= 64
    assert all(len(name) <= 64 for name in found)
    assert found == list(dict.fromkeys(name[:64] for name in names))[:64]
