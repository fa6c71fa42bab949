"""Words that tokenizers of GGUF files see, by the names of pre-tokenizers: llama.cpp's and transformers'.

llama_cpp_words.json holds what llama.cpp's own `unicode_regex_split` (b11434) makes of some texts, as lengths
in bytes; null where its expression is an approximation, as its source says, and gives other words than the
expression of the model's tokenizer.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import CohereTokenizer, GPTNeoXTokenizer, Qwen2Tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from stoker_runtime.gguf_splitting import DEFAULT, NOT_BYTE_LEVEL, SPLITTINGS

_RECORDED = json.loads((Path(__file__).parent / "llama_cpp_words.json").read_text())
TEXTS: list[str] = _RECORDED["texts"]
WORDS: dict[str, list[list[int] | None]] = {
    name: group["words"] for group in _RECORDED["splittings"] for name in group["names"]
}
ANY_TEXT = st.one_of(
    st.text(max_size=40),
    st.text("aZ\u00c9\u00e9\u0301\u4e2d\u304b 1\u0663\r\n\t'\u2019sSlL.,!/-_$\u20ac\U0001f600", max_size=40),
    st.lists(st.sampled_from(TEXTS), max_size=3).map("".join),
)
PRE_TOKENIZERS = [splitting.pre_tokenizer() for splitting in dict.fromkeys(SPLITTINGS.values())]


def lengths(pre_tokenizer: pre_tokenizers.PreTokenizer, text: str) -> list[int]:
    return [len(word) for word, _ in pre_tokenizer.pre_tokenize_str(text)]


def test_every_name_of_llama_cpp_is_known() -> None:
    assert set(SPLITTINGS) == set(WORDS)
    assert len(SPLITTINGS) == 87
    assert not set(SPLITTINGS) & set(NOT_BYTE_LEVEL)


@pytest.mark.parametrize("name", sorted(SPLITTINGS))
def test_words_are_those_of_llama_cpp(name: str) -> None:
    pre_tokenizer = SPLITTINGS[name].pre_tokenizer()
    differing = [
        text
        for text, words in zip(TEXTS, WORDS[name], strict=True)
        if words is not None and lengths(pre_tokenizer, text) != words
    ]
    assert differing == []


def test_few_words_of_llama_cpp_are_approximations() -> None:
    unusual = {name for name, rows in WORDS.items() if None in rows}
    cased = {"gpt-4o", "kanana2", "llama4", "talkie", "minimax-m2", "tekken", "granite-embed-multi-97m"}
    cased |= {"tiny_aya", "cohere2moe", "kimi-k2", "youtu"}
    assert unusual == cased | {"deepseek-llm", "deepseek-coder", "afmoe"}
    assert max(rows.count(None) for rows in WORDS.values()) == 8


@pytest.mark.parametrize("name", sorted(GGUF_PRE_TOKENIZER_SPLITS))
@given(text=ANY_TEXT)
def test_words_are_those_of_transformers(name: str, text: str) -> None:
    split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated")
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs = pre_tokenizers.Sequence([split, spelling])
    ours = SPLITTINGS[name].pre_tokenizer()
    assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("qwen2", Qwen2Tokenizer(vocab={"a": 0}, merges=[])),
        ("command-r", CohereTokenizer(vocab={"a": 0}, merges=[])),
        ("olmo", GPTNeoXTokenizer(vocab={"a": 0}, merges=[])),
        ("mpt", GPTNeoXTokenizer(vocab={"a": 0}, merges=[])),
    ],
)
@given(text=ANY_TEXT)
def test_words_are_those_of_the_familys_own_tokenizer(name: str, family: Any, text: str) -> None:
    theirs: Tokenizer = family.backend_tokenizer
    ours = Tokenizer(models.BPE())
    normalizer = SPLITTINGS[name].normalizer()
    assert normalizer is not None
    normalized = normalizer.normalize_str(text)
    assert normalized == theirs.normalizer.normalize_str(text)
    ours.pre_tokenizer = SPLITTINGS[name].pre_tokenizer()
    assert ours.pre_tokenizer.pre_tokenize_str(normalized) == theirs.pre_tokenizer.pre_tokenize_str(
        normalized
    )


@given(text=ANY_TEXT)
def test_no_character_is_lost(text: str) -> None:
    for pre_tokenizer in PRE_TOKENIZERS:
        assert sum(lengths(pre_tokenizer, text)) == len(text.encode())


def test_what_names_imply_besides() -> None:
    bos = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
    bos |= {"jina-v5-nano", "tekken", "chameleon"}
    whole = bos - {"chameleon"} | {
        "smaug-bpe",
        "glm4",
        "glm5",
        "youtu",
        "minicpm5",
        "granite-embed-multi-97m",
    }
    assert {name for name, splitting in SPLITTINGS.items() if splitting.adds_bos} == bos
    assert {name for name, splitting in SPLITTINGS.items() if splitting.ignores_merges} == whole
    composed = {name for name, splitting in SPLITTINGS.items() if splitting.composes}
    assert composed == {"qwen2", "qwen35", "command-r", "olmo", "mpt"}
    assert SPLITTINGS["default"] == DEFAULT


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("deepseek-r1-qwen", "it's 123", ["it", "'s", "\u0120", "1", "2", "3"]),
        ("tekken", "camelCase's 12", ["camel", "Case", "'s", "\u0120", "1", "2"]),
        ("gpt-4o", "camelCase's 1234", ["camel", "Case's", "\u0120", "123", "4"]),
        ("deepseek-v3", "x1234 .abc", ["x", "123", "4", "\u0120.", "abc"]),
        ("afmoe", "1234567", ["1", "234", "567"]),
        ("superbpe", "1234567 a b", ["1", "234", "567", "\u0120a\u0120b"]),
        ("minicpm5", "12345 a", ["123", "45", "\u0120a"]),
        ("laguna", "a\n\nb", ["a", "\u010a\u010a", "b"]),
        ("falcon", "a, 1234", ["a", ",", "\u0120", "123", "4"]),
    ],
)
def test_examples(name: str, text: str, words: list[str]) -> None:
    assert [word for word, _ in SPLITTINGS[name].pre_tokenizer().pre_tokenize_str(text)] == words
