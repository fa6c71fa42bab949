"""Prompts whose answer belongs in a gap, in the order in which each family was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from stoker_runtime.fim import FimTokens, around, find_fim, infill
from stoker_runtime.tokenizer_files import load_assets

FAMILIES = [
    pytest.param(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"], "0 a 1 b 2", id="qwen-codegemma"),
    pytest.param(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], "0 a 1 b 2", id="starcoder-granite"),
    pytest.param(["<fim-prefix>", "<fim-suffix>", "<fim-middle>"], "0 a 1 b 2", id="santacoder"),
    pytest.param(["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"], "0 a 1 b 2", id="code-llama"),
    pytest.param(["<PRE>", "<SUF>", "<MID>"], "0 a 1 b 2", id="code-llama-without-spaces"),
    pytest.param(
        ["<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"],
        "0 a 1 b 2",
        id="deepseek-coder",
    ),
    pytest.param(["[PREFIX]", "[SUFFIX]", "[MIDDLE]"], "1 b 0 a", id="codestral"),
]


def words(added: list[str]) -> Tokenizer:
    """A tokenizer of a few words and added tokens."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<pad>": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    return tokenizer


@pytest.mark.parametrize(("added", "want"), FAMILIES)
def test_a_family_gets_the_order_it_was_trained_with(added: list[str], want: str) -> None:
    tokenizer = words(added)
    fim = find_fim(tokenizer)
    assert fim is not None

    ids = infill(tokenizer, fim, "a", "b")

    names = {"a": "a", "b": "b"} | {text: str(number) for number, text in enumerate(added)}
    assert " ".join(names[tokenizer.id_to_token(token_id) or ""] for token_id in ids) == want


def test_what_begins_any_prompt_begins_this_one_and_nothing_closes_it() -> None:
    tokenizer = words(["<s>", "</s>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    ends = [(text, tokenizer.token_to_id(text)) for text in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    fim = find_fim(tokenizer)
    assert fim is not None

    ids = infill(tokenizer, fim, "", "b")

    texts = [tokenizer.id_to_token(token_id) for token_id in ids]
    assert texts == ["<s>", "<fim_prefix>", "<fim_suffix>", "b", "<fim_middle>"]
    assert around(tokenizer) == ([ends[0][1]], [ends[1][1]])


def test_words_of_the_vocabulary_are_no_fim_tokens() -> None:
    names = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    vocabulary = {name: number for number, name in enumerate(["?", *names])}
    assert find_fim(Tokenizer(models.WordLevel(vocabulary, unk_token="?"))) is None
    assert find_fim(words(names[:2])) is None


@pytest.mark.parametrize("older", [False, True], ids=["fim-keys", "older-keys"])
def test_a_gguf_file_may_name_the_tokens(older: bool) -> None:
    tokenizer = words(["<p>", "<s>", "<m>"])
    names = ("prefix", "suffix", "middle") if older else ("fim_pre", "fim_suf", "fim_mid")
    metadata: dict[str, Any] = {
        f"tokenizer.ggml.{name}_token_id": 4 + number for number, name in enumerate(names)
    }
    assert find_fim(tokenizer, metadata) == FimTokens(4, 5, 6)
    del metadata[f"tokenizer.ggml.{names[2]}_token_id"]
    assert find_fim(tokenizer, metadata) is None


def test_a_gguf_file_of_codestral_has_the_suffix_first() -> None:
    metadata = {"tokenizer.ggml.fim_pre_token_id": 4, "tokenizer.ggml.fim_suf_token_id": 5}
    assert find_fim(words(["[PREFIX]", "[SUFFIX]"]), metadata) == FimTokens(4, 5, None, suffix_first=True)


def test_a_models_files_are_asked_for_them(tmp_path: Path) -> None:
    tokenizer = words(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    assert load_assets(tmp_path).fim == FimTokens(4, 5, 6)
