from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from server_builders import (
    make_byte_fallback_tokenizer,
    make_byte_level_tokenizer,
    smollm2_assets,
)
from tokenizers import Tokenizer, decoders

from stoker_runtime.errors import ModelError
from stoker_runtime.server.detokenize import Detokenizer, TokenBytes

BYTE_LEVEL = make_byte_level_tokenizer()
BYTE_FALLBACK = make_byte_fallback_tokenizer()
TEXTS = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("a b\u00e9\u4e2d\U0001f600\u0301\ufffd")),
    max_size=30,
)


def pieces(detokenizer: Detokenizer, token_ids: Sequence[int], step: int = 1) -> list[str]:
    released = [detokenizer.push(token_ids[start : start + step]) for start in range(0, len(token_ids), step)]
    return [*released, detokenizer.finish()]


def reference(tokenizer: Tokenizer, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))


@given(
    token_ids=st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=40),
    step=st.integers(1, 5),
    skip_special_tokens=st.booleans(),
)
def test_any_byte_level_tokens_give_what_decoding_them_at_once_gives(
    token_ids: list[int], step: int, skip_special_tokens: bool
) -> None:
    detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), skip_special_tokens=skip_special_tokens)

    text = "".join(pieces(detokenizer, token_ids, step))

    assert text == reference(BYTE_LEVEL, token_ids, skip_special_tokens=skip_special_tokens)


@settings(deadline=None)
@given(text=TEXTS)
def test_every_prefix_of_multi_byte_text_is_exact_with_smollm2(text: str) -> None:
    tokenizer = smollm2_assets().tokenizer
    token_ids = tokenizer.encode(text).ids
    token_bytes = TokenBytes(tokenizer)
    for end in range(len(token_ids) + 1):
        detokenizer = Detokenizer(token_bytes, skip_special_tokens=False)
        *released, rest = pieces(detokenizer, token_ids[:end])
        assert "".join(released) + rest == reference(tokenizer, token_ids[:end])
        # What was released before the end is final: it is a prefix of the whole text, whatever follows.
        assert reference(tokenizer, token_ids).startswith("".join(released))


@settings(deadline=None)
@given(token_ids=st.lists(st.integers(0, 49151), max_size=30), step=st.integers(1, 4))
def test_any_smollm2_tokens_give_what_decoding_them_at_once_gives(token_ids: list[int], step: int) -> None:
    tokenizer = smollm2_assets().tokenizer

    text = "".join(pieces(Detokenizer(TokenBytes(tokenizer), skip_special_tokens=False), token_ids, step))

    assert text == reference(tokenizer, token_ids)


@given(text=TEXTS, step=st.integers(1, 4))
def test_byte_fallback_text_follows_the_prompt_exactly(text: str, step: int) -> None:
    prompt = BYTE_FALLBACK.encode("a").ids
    token_ids = BYTE_FALLBACK.encode(text.replace(" ", "\u2581")).ids
    assume(BYTE_FALLBACK.token_to_id("<unk>") not in token_ids)

    released = pieces(Detokenizer(TokenBytes(BYTE_FALLBACK)), token_ids, step)

    assert reference(BYTE_FALLBACK, prompt) + "".join(released) == reference(
        BYTE_FALLBACK, prompt + token_ids
    )


FALLBACK_VOCAB = BYTE_FALLBACK.get_vocab()
BYTES = {byte: FALLBACK_VOCAB[f"<0x{byte:02X}>"] for byte in range(256)}
FALLBACK_TOKENS = st.one_of(
    st.integers(0, BYTE_FALLBACK.get_vocab_size() - 1),
    st.sampled_from([BYTES[byte] for byte in (0x41, 0xC3, 0xA9, 0xE4, 0xB8, 0xAD, 0xFF)]),
)


@given(
    token_ids=st.lists(st.one_of(FALLBACK_TOKENS, st.just(99_999)), max_size=20),
    step=st.integers(1, 4),
    skip_special_tokens=st.booleans(),
)
def test_every_prefix_of_any_byte_fallback_tokens_is_exact(
    token_ids: list[int], step: int, skip_special_tokens: bool
) -> None:
    prompt = BYTE_FALLBACK.encode("a").ids
    known = [token_id for token_id in token_ids if token_id < 99_999]  # decode() stops at an unused id
    token_bytes = TokenBytes(BYTE_FALLBACK)
    for end in range(len(token_ids) + 1):
        detokenizer = Detokenizer(token_bytes, skip_special_tokens=skip_special_tokens)
        *released, rest = pieces(detokenizer, token_ids[:end], step)
        prefix = [token_id for token_id in token_ids[:end] if token_id < 99_999]
        want, whole = (
            reference(BYTE_FALLBACK, prompt + ids, skip_special_tokens=skip_special_tokens)
            for ids in (prefix, known)
        )
        assert "a" + "".join(released) + rest == want
        assert whole.startswith("a" + "".join(released))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param("\u4e2d".encode(), "\u4e2d", id="a-character"),
        pytest.param(b"\xe4\xb8", "\ufffd\ufffd", id="a-cut-character"),
        pytest.param("\u00e9".encode() + b"\xff", "\ufffd\ufffd\ufffd", id="a-good-one-in-a-bad-run"),
    ],
)
def test_a_run_of_bytes_is_text_as_a_whole_or_not_at_all(data: bytes, text: str) -> None:
    detokenizer = Detokenizer(TokenBytes(BYTE_FALLBACK))

    released = [detokenizer.push([BYTES[byte]]) for byte in data]
    released.append(detokenizer.push([FALLBACK_VOCAB["b"]]))

    assert released == [*[""] * len(data), text + "b"]
    assert detokenizer.token_starts == [*[0] * len(data), len(text)]


def test_a_stop_string_in_a_run_of_bytes_ends_the_text_before_what_follows() -> None:
    detokenizer = Detokenizer(TokenBytes(BYTE_FALLBACK), stop=["\u4e2d"])
    run = [BYTES[byte] for byte in "\u4e2d".encode()]

    released = pieces(detokenizer, [FALLBACK_VOCAB["b"], *run, FALLBACK_VOCAB["b"]])

    assert released == ["b", *[""] * 5]
    assert detokenizer.stop_string == "\u4e2d"
    assert len(detokenizer.token_starts) == 4


def test_a_character_is_released_with_its_last_byte() -> None:
    token_ids = BYTE_LEVEL.encode("\u00e9\u4e2d\U0001f600").ids

    released = pieces(Detokenizer(TokenBytes(BYTE_LEVEL)), token_ids)

    assert released == ["", "\u00e9", "", "", "\u4e2d", "", "", "", "\U0001f600", ""]


def test_a_character_that_is_never_complete_ends_as_a_replacement_character() -> None:
    token_ids = BYTE_LEVEL.encode("a\u4e2d").ids[:-1]

    assert pieces(Detokenizer(TokenBytes(BYTE_LEVEL)), token_ids) == ["a", "", "", "\ufffd"]


def test_a_leading_space_after_the_prompt_stays() -> None:
    vocab = BYTE_FALLBACK.get_vocab()
    token_ids = [vocab["\u2581a"], vocab["b"]]

    assert pieces(Detokenizer(TokenBytes(BYTE_FALLBACK)), token_ids) == [" a", "b", ""]


def test_unused_ids_of_a_padded_vocabulary_give_no_text() -> None:
    assert pieces(Detokenizer(TokenBytes(BYTE_LEVEL)), [100_000]) == ["", ""]


def test_special_tokens_are_skipped_unless_asked_for() -> None:
    token_ids = BYTE_LEVEL.encode("a<|end|>b<tool>").ids
    token_bytes = TokenBytes(BYTE_LEVEL)

    assert "".join(pieces(Detokenizer(token_bytes), token_ids)) == "ab<tool>"
    assert (
        "".join(pieces(Detokenizer(token_bytes, skip_special_tokens=False), token_ids)) == "a<|end|>b<tool>"
    )


@pytest.mark.parametrize(
    ("text", "stop", "include_stop", "want"),
    [
        pytest.param("one two three", ["two"], False, ["one ", "two"], id="excluded"),
        pytest.param("one two three", ["two"], True, ["one two", "two"], id="included"),
        pytest.param("xabc", ["xabc", "ab"], False, ["x", "ab"], id="the-first-to-be-complete-wins"),
        pytest.param("xabc", ["abc", "bc"], False, ["x", "abc"], id="the-longer-of-two-that-end-together"),
        pytest.param("aab", ["ab"], False, ["a", "ab"], id="overlapping-start"),
        pytest.param("aa\u4e2db", ["\u4e2d"], False, ["aa", "\u4e2d"], id="multi-byte"),
        pytest.param("abcab", ["abd"], False, ["abcab", None], id="never-complete"),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_stop_strings_do_not_depend_on_token_borders(
    text: str, stop: list[str], include_stop: bool, want: list[str | None], step: int
) -> None:
    detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), stop=stop, include_stop=include_stop)

    released = "".join(pieces(detokenizer, BYTE_LEVEL.encode(text).ids, step))

    assert [released, detokenizer.stop_string] == want
    assert detokenizer.num_released == len(released)


@given(
    text=st.text("ab\u4e2d", max_size=20),
    stop=st.lists(st.text("ab\u4e2d", min_size=1, max_size=4), min_size=1, max_size=4),
    step=st.integers(1, 6),
    include_stop=st.booleans(),
)
def test_stop_strings_cut_where_a_search_of_the_growing_text_would(
    text: str, stop: list[str], step: int, include_stop: bool
) -> None:
    want = text
    for end in range(len(text) + 1):
        found = [string for string in stop if text[:end].endswith(string)]
        if found:
            want = text[:end] if include_stop else text[: end - max(map(len, found))]
            break
    detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), stop=stop, include_stop=include_stop)

    assert "".join(pieces(detokenizer, BYTE_LEVEL.encode(text).ids, step)) == want


@given(
    text=st.text("abc", max_size=15),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_is_held_back_only_while_it_may_become_a_stop_string(text: str, stop: list[str]) -> None:
    detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), stop=stop)
    for end, token_id in enumerate(BYTE_LEVEL.encode(text).ids, start=1):
        detokenizer.push([token_id])
        if detokenizer.stop_string is not None:
            return
        held = text[detokenizer.num_released : end]
        assert not held or any(string.startswith(held) for string in stop)


def test_stop_strings_within_the_first_min_tokens_are_let_through() -> None:
    token_ids = BYTE_LEVEL.encode("stop and stop again").ids
    detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), stop=["stop"], min_tokens=4)

    assert "".join(pieces(detokenizer, token_ids)) == "stop and "
    assert detokenizer.stop_string == "stop"


@pytest.mark.parametrize("min_tokens", range(6))
@pytest.mark.parametrize("step", [1, 3])
def test_a_stop_string_counts_when_it_ends_behind_min_tokens(min_tokens: int, step: int) -> None:
    detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), stop=["op", "stop"], min_tokens=min_tokens)

    released = "".join(pieces(detokenizer, BYTE_LEVEL.encode("astopb").ids, step))

    assert released == ("a" if min_tokens < 5 else "astopb")


@given(
    text=st.text("ab", max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    min_tokens=st.integers(0, 8),
    step=st.integers(1, 4),
)
def test_with_min_tokens_the_first_stop_string_that_ends_behind_them_wins(
    text: str, stop: list[str], min_tokens: int, step: int
) -> None:
    want = text
    for end in range(min_tokens + 1, len(text) + 1):
        found = [string for string in stop if text[:end].endswith(string)]
        if found:
            want = text[: end - max(map(len, found))]
            break
    detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), stop=stop, min_tokens=min_tokens)

    assert "".join(pieces(detokenizer, BYTE_LEVEL.encode(text).ids, step)) == want


def test_token_starts_count_the_characters_before_each_token() -> None:
    detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL))
    detokenizer.push(BYTE_LEVEL.encode("a\u00e9b").ids)

    assert detokenizer.token_starts == [0, 1, 1, 2]


def test_nothing_follows_a_stop_string() -> None:
    detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), stop=["b"])

    assert pieces(detokenizer, BYTE_LEVEL.encode("abc").ids) == ["a", "", "", ""]


@pytest.mark.parametrize(
    "decoder", [pytest.param(decoders.CTC(), id="ctc"), pytest.param(decoders.WordPiece(), id="word-piece")]
)
def test_a_decoder_whose_tokens_have_no_bytes_of_their_own_is_refused(decoder: decoders.Decoder) -> None:
    tokenizer = make_byte_level_tokenizer()
    tokenizer.decoder = decoder

    with pytest.raises(ModelError, match="is not supported") as caught:
        TokenBytes(tokenizer)
    assert caught.value.reason == "UnsupportedModel"
