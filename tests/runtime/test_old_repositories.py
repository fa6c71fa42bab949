"""Tokenizers as old repositories and fine-tunes have them: transformers' ids, or what to do about them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from stoker_runtime.errors import ModelError
from stoker_runtime.tokenizer_files import load_assets, read_eos_token_ids

CORPUS = ["Hello world, it's 12345 o'clock: caf\u00e9!", "  def main():\n\treturn 42", "the theory there"] * 4
TEXTS = [*CORPUS[:3], "e\u0301 <x> the<y>re [PAD]<|end|> a", " \u4f60\u597d\n\n <x>", "<b> x<|end|>\n"]
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
X = {"__type": "AddedToken", "content": "<x>", "special": True, **FLAGS}


def write(folder: Path, tokenizer_config: dict[str, Any], **files: Any) -> int:
    """A folder with a small byte-level tokenizer; returns how many tokens it has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    written = {"config": {"model_type": "llama"}, "tokenizer_config": tokenizer_config, **files}
    for name, content in written.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return tokenizer.get_vocab_size()


def assert_as_transformers(folder: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_assets(folder).tokenizer
    assert ours.get_vocab() == theirs.get_vocab()
    for text in TEXTS:
        ids = theirs(text, truncation=False, padding=False)["input_ids"]
        assert ours.encode(text).ids == ids, text
        for skips in (False, True):
            wanted = theirs.decode(ids, skip_special_tokens=skips, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skips) == wanted, text


@pytest.mark.parametrize(
    "fields",
    [
        {"additional_special_tokens": ["<x>", "<y>"], "pad_token": "[PAD]"},
        {"extra_special_tokens": ["<y>", "<x>"], "unk_token": "<u>"},
        {
            "bos_token": {"__type": "AddedToken", "content": "<b>", **FLAGS, "lstrip": True},
            "mask_token": "<x>",
        },
        {"additional_special_tokens": [{**X, "rstrip": True}]},
        {"pad_token": "there", "additional_special_tokens": ["the"]},
        {"pad_token": None, "additional_special_tokens": []},
    ],
)
def test_special_tokens_without_an_id_get_that_of_transformers(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, {"eos_token": "<|end|>", **fields})
    assert_as_transformers(tmp_path)


def test_a_special_token_beyond_the_models_vocabulary_stays_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model has no row for it: a request with such an id could only fail."""
    size = write(tmp_path, {"additional_special_tokens": ["<x>", "<y>"]})
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": size + 1}))
    tokenizer = load_assets(tmp_path).tokenizer
    assert tokenizer.token_to_id("<x>") == size
    assert tokenizer.token_to_id("<y>") is None
    assert max(tokenizer.encode("<x><y>").ids) == size
    assert "'<y>' is beyond the vocabulary" in caplog.text


def make_slow(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    "fields",
    [
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
        {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|begin|>"},
        {"tokenizer_class": "Qwen2TokenizerFast", "additional_special_tokens": ["<x>"]},
    ],
)
def test_a_vocabulary_and_merges_are_a_tokenizer(fields: dict[str, Any], tmp_path: Path) -> None:
    named = {"eos_token": "<|end|>", "bos_token": "<|begin|>", "unk_token": "<|end|>", "pad_token": "<|end|>"}
    write(tmp_path, {**named, **fields})
    make_slow(tmp_path)
    assert_as_transformers(tmp_path)
    assert load_assets(tmp_path).eos_token_ids == read_eos_token_ids(tmp_path) == (1,)


def test_added_tokens_of_an_old_repository_keep_their_ids(tmp_path: Path) -> None:
    size = write(tmp_path, {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"})
    make_slow(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<y>": size + 1, "<x>": size}))
    tokenizer = load_assets(tmp_path).tokenizer
    assert [tokenizer.token_to_id(token) for token in ("<x>", "<y>")] == [size, size + 1]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": size + 7}))
    with pytest.raises(ModelError, match=r"'<x>' the id .* save the fast tokenizer"):
        load_assets(tmp_path)


@pytest.mark.parametrize(
    ("present", "kind", "message"),
    [
        ("tokenizer.model", "LlamaTokenizer", r"tokenizer\.model: LlamaTokenizer\); .*sentencepiece"),
        ("vocab.json", "FooTokenizer", r"vocab\.json: FooTokenizer\); .*save_pretrained"),
        ("vocab.json", None, r"vocab\.json: of no stated class\); .*save_pretrained"),
        ("nothing", "GPT2Tokenizer", r"has no tokenizer\.json; save"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_is_refused_with_the_way_to_convert(
    present: str, kind: str | None, message: str, tmp_path: Path
) -> None:
    write(tmp_path, {"tokenizer_class": kind})
    (tmp_path / "tokenizer.json").rename(tmp_path / present)
    with pytest.raises(ModelError, match=message) as caught:
        load_assets(tmp_path)
    assert caught.value.reason == "UnsupportedModel"


def test_broken_merges_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"tokenizer_class": "GPT2Tokenizer"})
    make_slow(tmp_path)
    (tmp_path / "merges.txt").write_text("zz yy\n")
    with pytest.raises(ModelError, match=r"merges\.txt cannot be read: .* download"):
        load_assets(tmp_path)


def test_files_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    write(tmp_path, {"eos_token": "<|end|>"}, generation_config={"temperature": 0.5})
    for name in ("config", "tokenizer_config", "generation_config"):
        file = tmp_path / f"{name}.json"
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assets = load_assets(tmp_path)
    assert (assets.eos_token_ids, assets.generation_defaults) == ((1,), {"temperature": 0.5})


def test_an_empty_generation_config_has_no_defaults(tmp_path: Path) -> None:
    write(tmp_path, {"eos_token": "<|end|>"})
    (tmp_path / "generation_config.json").write_text("")
    assert load_assets(tmp_path).generation_defaults == {}
    shutil.copy(tmp_path / "generation_config.json", tmp_path / "tokenizer_config.json")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json cannot be read.*download it anew"):
        load_assets(tmp_path)
