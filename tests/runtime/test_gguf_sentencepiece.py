"""SentencePiece tokenizers in GGUF files: the tokens that llama.cpp's rule gives, and the text back."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer
from transformers.convert_slow_tokenizer import generate_merges

from stoker_runtime.errors import ModelError
from stoker_runtime.server.detokenize import Detokenizer, TokenBytes
from stoker_runtime.tokenizer_files import load_assets, read_eos_token_ids

SPACE = "\u2581"
CORPUS = [
    "Hello world, they say it was the best of times, it was the worst of times.",
    "  def main(argv):\n    return argv[0] + 2024",
    "the theory of the thing that they thought there, na\u00efve caf\u00e9",
] * 4
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters=SPACE), max_size=30),
    st.text("theoryw asi\u00e9\u4e2d\U0001f600\n", max_size=40),
    st.sampled_from(CORPUS),
)


def vocabulary() -> list[tuple[str, float, int]]:
    """Pieces as SentencePiece orders them: named ones, bytes, merges by rank, characters."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    merges = [
        merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
        for merge in json.loads(trained.to_str())["model"]["merges"]
    ]
    characters = sorted(token for token in trained.get_vocab() if len(token) == 1)
    pieces = list(dict.fromkeys([*merges, *characters]))
    return [
        ("<unk>", 0.0, UNKNOWN),
        ("<s>", 0.0, CONTROL),
        ("</s>", 0.0, CONTROL),
        *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)),
        *((piece, -float(rank), NORMAL) for rank, piece in enumerate(pieces)),
        ("<tool>", 0.0, USER_DEFINED),
    ]


VOCABULARY = vocabulary()
IDS = {token: token_id for token_id, (token, _, _) in enumerate(VOCABULARY)}
NAMED = [token for token, _, kind in VOCABULARY if kind not in (NORMAL, BYTE)]
SCORES = {token: score for token, score, kind in VOCABULARY if kind == NORMAL}


def write(
    path: Path,
    architecture: str = "llama",
    further: Sequence[tuple[str, float, int]] = (),
    **changes: Any,
) -> Path:
    """A GGUF file of VOCABULARY and further pieces; changes are tokenizer.ggml.* values."""
    keys: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, **changes}
    pieces = [*VOCABULARY, *further]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _, _ in pieces])
    writer.add_token_scores(keys.pop("scores", [score for _, score, _ in pieces]))
    writer.add_token_types([kind for _, _, kind in pieces])
    for key, value in keys.items():
        name = f"tokenizer.ggml.{key}"
        writer.add_bool(name, value) if isinstance(value, bool) else writer.add_uint32(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp(text: str) -> list[int]:
    """llama.cpp's rule: merge the best-scored neighbours, of equals the first, while there are any."""
    symbols = list((" " + text).replace(" ", SPACE)) if text else []
    while True:
        pairs = [
            (SCORES[left + right], -index)
            for index, (left, right) in enumerate(itertools.pairwise(symbols))
            if left + right in SCORES
        ]
        if not pairs:
            break
        index = -max(pairs)[1]
        symbols[index : index + 2] = [symbols[index] + symbols[index + 1]]
    return [
        token_id
        for symbol in symbols
        for token_id in (
            [IDS[symbol]] if symbol in SCORES else [IDS[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        )
    ]


@cache
def reference() -> LlamaTokenizer:
    """The same vocabulary as transformers converts it."""
    skipped = [token for token, _, kind in VOCABULARY if kind != NORMAL]
    merges = generate_merges(IDS, {token: score for token, score, _ in VOCABULARY}, skip_tokens=skipped)
    return LlamaTokenizer(vocab=IDS, merges=merges)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_assets(write(tmp_path_factory.mktemp("gguf") / "m.gguf")).tokenizer


@given(text=TEXTS)
def test_tokens_are_those_of_llama_cpps_rule(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not any(token in text for token in NAMED):
        assert ids == llama_cpp(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(text=TEXTS)
def test_tokens_are_those_of_transformers(text: str, tokenizer: Tokenizer) -> None:
    # It puts no second space before a text that has one; the tokenizer.json of Llama 2 does.
    assume(not text.startswith((" ", SPACE)) and not any(token in text for token in NAMED))
    theirs = reference()

    ids = tokenizer.encode(text, add_special_tokens=False).ids

    assert ids == theirs.encode(text, add_special_tokens=False)


@given(text=TEXTS)
def test_answers_are_detokenized_byte_for_byte(text: str, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("the", add_special_tokens=False).ids
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    detokenizer = Detokenizer(TokenBytes(tokenizer), skip_special_tokens=False)

    shown = "".join(detokenizer.push([token_id]) for token_id in ids) + detokenizer.finish()

    assert "the" + shown == tokenizer.decode(prompt + ids, skip_special_tokens=False)


def test_special_tokens_stand_for_themselves_and_a_prompt_begins_with_bos(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the<s>the<tool>").ids

    assert ids == [1, *llama_cpp("the"), 1, *llama_cpp("the"), IDS["<tool>"]]
    assert tokenizer.decode(ids) == "the the<tool>"


def test_the_file_says_whether_a_text_begins_with_a_space(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", add_space_prefix=False, add_bos_token=False, add_eos_token=True)
    assets = load_assets(path)

    ids = assets.tokenizer.encode("the").ids

    assert "".join(VOCABULARY[token_id][0] for token_id in ids) == "the</s>"
    assert assets.tokenizer.decode([IDS[f"{SPACE}the"]]) == " the"
    assert (assets.add_bos, assets.eos_token_ids) == (False, (2,))


def test_runs_of_spaces_and_lines_that_gemma_has_are_tokens_of_their_own(tmp_path: Path) -> None:
    """User-defined pieces, which SentencePiece finds before it merges anything; the longest first."""
    runs = [("  ", -1000.0, USER_DEFINED), ("   ", -1000.0, USER_DEFINED), ("\n\n", -1000.0, USER_DEFINED)]
    path = write(tmp_path / "m.gguf", "gemma2", runs, add_space_prefix=False, add_bos_token=True)
    tokenizer = load_assets(path).tokenizer
    two, three, lines = range(len(VOCABULARY), len(VOCABULARY) + 3)

    ids = tokenizer.encode("the   they     a\n\nb").ids

    assert ids[0] == 1
    assert [token_id for token_id in ids if token_id >= two] == [three, three, two, lines]
    assert tokenizer.decode(ids) == "the   they     a\n\nb"
    assert ids.count(IDS[SPACE]) == 0


def test_what_ends_a_turn_ends_an_answer(tmp_path: Path) -> None:
    """Gemma's files and Phi-3's name only the end of a text."""
    named = [
        ("<end_of_turn>", -1000.0, CONTROL),
        ("<|end|>", -1000.0, USER_DEFINED),
        ("<|im_end|>", -9.0, NORMAL),
    ]
    path = write(tmp_path / "m.gguf", "gemma3", named)
    assert load_assets(path).eos_token_ids == (2, len(VOCABULARY), len(VOCABULARY) + 1)
    assert read_eos_token_ids(path) == load_assets(path).eos_token_ids


def test_phis_named_tokens_swallow_the_space_behind_them(tmp_path: Path) -> None:
    """As its tokenizer.json says and llama.cpp knows; no other architecture's do."""
    named = [("<|user|>", -1000.0, CONTROL), ("<|endoftext|>", -1000.0, CONTROL)]
    text = "<|user|>\n the<s> the<|endoftext|> the"
    user, end = len(VOCABULARY), len(VOCABULARY) + 1
    for architecture, behind in (("phi3", llama_cpp("the")), ("llama", llama_cpp("\n the"))):
        path = write(tmp_path / "m.gguf", architecture, named, add_bos_token=False)
        ids = load_assets(path).tokenizer.encode(text).ids
        space_the = llama_cpp(" the")
        assert ids == [user, *behind, 1, *space_the, end, *space_the]


@pytest.mark.parametrize(
    ("write_file", "reason", "word"),
    [
        pytest.param(
            lambda path: write(path, remove_extra_whitespaces=True),
            "UnsupportedModel",
            "remove_extra_whitespaces",
            id="whitespace",
        ),
        pytest.param(lambda path: write(path, scores=[1.0]), "InvalidModel", "1 scores", id="scores"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused(
    write_file: Callable[[Path], Path], reason: str, word: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=word) as caught:
        load_assets(write_file(tmp_path / "m.gguf"))
    assert caught.value.reason == reason
