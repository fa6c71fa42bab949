from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime_builders import make_sampling
from server_builders import make_byte_fallback_tokenizer, make_byte_level_tokenizer
from server_engine import prompt_logprob

from stoker_runtime.messages import RequestOutput
from stoker_runtime.server.detokenize import TokenBytes
from stoker_runtime.server.generation import Delta, Generation
from stoker_runtime.server.prompt_output import PIECE_CHARS, PIECE_VALUES, PromptOutput, token_offsets

TOKENIZER = make_byte_level_tokenizer()
TOKEN_BYTES = TokenBytes(TOKENIZER)
FALLBACK = make_byte_fallback_tokenizer()
FALLBACK_BYTES = TokenBytes(FALLBACK)
START = TOKENIZER.token_to_id("<|start|>")


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


@given(text=st.text(st.sampled_from("ab \u00e9\u4e2d\U0001f600"), max_size=30))
def test_offsets_of_a_texts_own_tokens_are_where_they_begin(text: str) -> None:
    offsets = list(token_offsets(text, ids(text), TOKEN_BYTES))

    # Each character has as many tokens as bytes; the last of them completes it.
    assert offsets == [at for at, char in enumerate(text) for _ in char.encode()]


@pytest.mark.parametrize(
    ("text", "token_ids", "want"),
    [
        pytest.param("ab", [START, *ids("ab")], [0, 0, 1], id="a-start-that-the-text-lacks"),
        pytest.param("<|start|>a", ids("<|start|>a"), [0, 9], id="a-start-in-the-text"),
        pytest.param("<|start|>a", [START, *ids("<|start|>a")], [0, 9, 9], id="a-start-twice"),
        pytest.param("a<tool>b", ids("a<tool>b"), [0, 1, 7], id="an-added-token"),
        pytest.param("xy", ids("abcd"), [0, 1, 2, 2], id="another-text"),
        pytest.param("", ids("ab"), [0, 0], id="no-text"),
    ],
)
def test_offsets_where_text_and_tokens_differ(text: str, token_ids: list[int], want: list[int]) -> None:
    assert list(token_offsets(text, token_ids, TOKEN_BYTES)) == want


def test_a_leading_space_that_the_tokenizer_added_takes_no_room() -> None:
    vocabulary = FALLBACK.get_vocab()
    token_ids = [vocabulary[piece] for piece in ("<s>", "\u2581a", "b", "\u2581a", "<0xC3>", "<0xA9>", "b")]

    assert list(token_offsets("ab a\u00e9b", token_ids, FALLBACK_BYTES)) == [0, 0, 1, 2, 4, 4, 5]


def scored(prompts: Sequence[str], *, n: int = 1, logprobs: int | None = 1, **changes: object) -> Generation:
    options: dict[str, object] = {
        "prompts": [ids(prompt) for prompt in prompts],
        "sampling": make_sampling(logprobs=logprobs, prompt_logprobs=logprobs),
        "echo": tuple(prompts),
        "n": n,
        **changes,
    }
    return Generation(**options)  # type: ignore[arg-type]


@given(
    prompts=st.lists(st.text("ab\u4e2d", min_size=1, max_size=6), min_size=1, max_size=3),
    n=st.integers(1, 3),
    has_logprobs=st.booleans(),
    shows_prompt_logprobs=st.booleans(),
    data=st.data(),
)
def test_every_choice_is_led_by_its_prompt_and_loses_nothing(
    prompts: list[str], n: int, has_logprobs: bool, shows_prompt_logprobs: bool, data: st.DataObject
) -> None:
    generation = scored(
        prompts, n=n, logprobs=2 if has_logprobs else None, shows_prompt_logprobs=shows_prompt_logprobs
    )
    output = PromptOutput(generation, TOKEN_BYTES)
    scores = [[prompt_logprob(token, 2) for token in prompt[1:]] for prompt in generation.prompts]
    pieces = list(output.opening())
    # Choices give two tokens each in any order; a first choice brings its prompt's scores in two parts.
    given_tokens = data.draw(st.permutations([i for i in range(generation.num_choices) for _ in range(2)]))
    for number, index in enumerate(given_tokens):
        prompt = index // n
        is_scoring = index % n == 0 and index not in given_tokens[:number]
        middle = len(scores[prompt]) // 2
        for part, tokens in ((scores[prompt][:middle], []), (scores[prompt][middle:], [7])):
            outputs = part if is_scoring else []
            output.take(index, RequestOutput(request_id="r", token_ids=tokens, prompt_logprobs=outputs))
            pieces += output.before([Delta(index, f"<{number}>" if tokens else "")])

    deltas = [delta for piece in pieces for delta in piece]
    for index in range(generation.num_choices):
        prompt = index // n
        own = [delta for delta in deltas if delta.index == index]
        text = "".join(f"<{number}>" for number, i in enumerate(given_tokens) if i == index)
        assert "".join(delta.text for delta in own) == prompts[prompt] + text
        shown = [token.logprob for delta in own for token in delta.tokens]
        assert shown == ([None, *scores[prompt]] if has_logprobs else [])
        told = [logprob for delta in own for logprob in delta.prompt_logprobs]
        assert told == (scores[prompt] if shows_prompt_logprobs and index % n == 0 else [])


def test_a_long_prompt_comes_in_pieces_whose_texts_fit_their_tokens() -> None:
    text = "ab\u4e2d" * 1000
    generation = scored([text])
    output = PromptOutput(generation, TOKEN_BYTES)
    logprobs = [prompt_logprob(token, 5) for token in ids(text)[1:]]
    output.take(0, RequestOutput(request_id="r", token_ids=[7], prompt_logprobs=logprobs))

    pieces = list(output.before([Delta(0, "x")]))

    sizes = [len(delta.tokens) for (delta,) in pieces]
    piece, left = PIECE_VALUES // 3, len(ids(text))
    assert sizes == [piece] * (left // piece) + [left % piece, 0]
    at = 0
    for (delta,) in pieces[:-1]:
        assert delta.tokens[0].text_offset == at
        at += len(delta.text)
    assert at == len(text)
    # The engine was asked for more of the likeliest tokens than the answer's own have.
    assert {len(t.logprob.top) for (delta,) in pieces for t in delta.tokens if t.logprob is not None} == {1}


def test_a_long_text_comes_in_pieces() -> None:
    text = "ab\u4e2d" * PIECE_CHARS
    output = PromptOutput(Generation(prompts=[[1]], sampling=make_sampling(), echo=(text,)), TOKEN_BYTES)

    pieces = [delta.text for (delta,) in output.opening()]

    assert [len(piece) for piece in pieces] == [PIECE_CHARS] * 3
    assert "".join(pieces) == text


def test_where_nothing_is_told_deltas_pass_as_they_are() -> None:
    output = PromptOutput(Generation(prompts=[[1]], sampling=make_sampling()), TOKEN_BYTES)
    deltas = [Delta(0, "a")]

    assert list(output.opening()) == []
    assert next(iter(output.before(deltas))) is deltas
