"""Tokenizers and templates out of Hugging Face directories and GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_builders import smollm2_path
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import read_gguf
from stoker_runtime.tokenizer_files import load_assets, read_eos_token_ids

CORPUS = [
    "Hello world, it's 12345 o'clock and they'll say: don't!",
    "  def main(argv):\n\n    return argv[0] + 2024\r\n",
    "naïve café über straße 東京タワー Привет мир 🎉🎉 ½ ²",
    "parseHTTPResponse ÄrgerÜber don'T http://a/b//",
    "the theory of the thing that they thought there",
] * 4
SPECIALS = ["<|begin|>", "<|end|>", "<|turn|>"]


def train(normalizer: normalizers.Normalizer | None, pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A byte-level BPE tokenizer over CORPUS, as a model's authors would have made it."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def write_gguf_tokenizer(
    path: Path, tokenizer: Tokenizer, pre: str | None, sampling: dict[str, float] | None = None, **keys: Any
) -> Path:
    """Put a tokenizer's vocabulary and merges into a GGUF file.

    Args:
        path: the file to write.
        tokenizer: what goes into it.
        pre: llama.cpp's name of the pre-tokenizer, if the file has one.
        sampling: general.sampling.* values.
        keys: further tokenizer.ggml.* values.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_tokenizer_model(str(keys.pop("model", "gpt2")))
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in SPECIALS else 1 for token, _ in vocabulary])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for key, value in keys.items():
        name = f"tokenizer.ggml.{key}"
        writer.add_bool(name, value) if isinstance(value, bool) else writer.add_uint32(name, value)
    for key, number in (sampling or {}).items():
        name = f"general.sampling.{key}"
        writer.add_int32(name, number) if isinstance(number, int) else writer.add_float32(name, number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def references() -> dict[str, Tokenizer]:
    """Per pre-tokenizer name, a tokenizer that splits as the family's own files say."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    llama3_pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    qwen2 = Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer
    assert TikTokenConverter(vocab_file="none").pattern == llama3_pattern
    assert {GGUF_PRE_TOKENIZER_SPLITS[pre] for pre in ("llama-bpe", "smaug-bpe", "dbrx")} == {llama3_pattern}
    llama3_split = pre_tokenizers.Split(Regex(llama3_pattern), "isolated")
    no_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = {
        "gpt-2": train(None, byte_level),
        "smollm": train(None, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level])),
        "llama-bpe": train(None, pre_tokenizers.Sequence([llama3_split, no_regex])),
        "qwen2": train(qwen2.normalizer, qwen2.pre_tokenizer),
    }
    made["llama-bpe"].model.ignore_merges = True
    for pre, like in {
        "smaug-bpe": "llama-bpe",
        "dbrx": "llama-bpe",
        "refact": "smollm",
        "starcoder": "smollm",
    }.items():
        made[pre] = Tokenizer.from_str(made[like].to_str())
    made["dbrx"].model.ignore_merges = False
    cased = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS["gpt-4o"]), "isolated")
    made["gpt-4o"] = train(None, pre_tokenizers.Sequence([cased, no_regex]))
    return made


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Tokenizer]]:
    """Per pre-tokenizer name: the reference, and what load_assets makes of its GGUF file."""
    folder = tmp_path_factory.mktemp("gguf")
    pairs = {}
    for pre, tokenizer in references().items():
        path = write_gguf_tokenizer(
            folder / f"{pre}.gguf", tokenizer, pre, eos_token_id=1, add_bos_token=False
        )
        pairs[pre] = (tokenizer, load_assets(path).tokenizer)
    return pairs


@pytest.mark.parametrize(
    "pre",
    ["gpt-2", "smollm", "refact", "starcoder", "llama-bpe", "smaug-bpe", "dbrx", "qwen2", "gpt-4o"],
)
@given(text=st.one_of(st.text(max_size=40), st.lists(st.sampled_from([*CORPUS, *SPECIALS])).map("".join)))
def test_gguf_tokenizer_encodes_and_decodes_as_the_original(
    pre: str, text: str, rebuilt: dict[str, tuple[Tokenizer, Tokenizer]]
) -> None:
    original, ours = rebuilt[pre]
    ids = original.encode(text).ids
    assert ours.encode(text).ids == ids
    expected = original.normalizer.normalize_str(text) if original.normalizer else text
    assert ours.decode(ids, skip_special_tokens=False) == expected


def test_default_pre_tokenizer_splits_runs_of_punctuation_and_threes_of_digits(tmp_path: Path) -> None:
    tokenizer = train(None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    path = write_gguf_tokenizer(tmp_path / "m.gguf", tokenizer, "default")
    split = load_assets(path).tokenizer.pre_tokenizer
    assert split is not None
    assert [piece for piece, _ in split.pre_tokenize_str("Hi there!? 12345")] == [
        "Hi",
        "Ġthere",
        "!?",
        "Ġ",
        "123",
        "45",
    ]


def test_smollm2_file_has_the_tokenizer_of_its_release() -> None:
    assets = load_assets(smollm2_path())
    assert assets.eos_token_ids == (2,) == read_eos_token_ids(smollm2_path())
    assert assets.special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    assert (assets.bos_token, assets.eos_token, assets.add_bos) == ("<|im_start|>", "<|im_end|>", False)
    assert assets.chat_template is not None
    assert "<|im_start|>" in assets.chat_template
    assert assets.tokenizer.get_vocab_size() == 49152
    ids = assets.tokenizer.encode("<|im_start|>user\n42").ids
    assert ids == [1, 4093, 198, 36, 34]  # digits one by one
    assert assets.tokenizer.decode(ids) == "user\n42"  # special tokens are skipped on demand
    assert load_assets(smollm2_path().parent).special_tokens == assets.special_tokens  # by its directory, too


def test_gguf_prompts_get_bos_and_eos_as_the_file_says(tmp_path: Path) -> None:
    tokenizer = train(None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    path = write_gguf_tokenizer(
        tmp_path / "m.gguf",
        tokenizer,
        "gpt-2",
        bos_token_id=0,
        eos_token_id=1,
        eot_token_id=2,
        add_bos_token=True,
        add_eos_token=True,
    )
    assets = load_assets(path)
    ids = assets.tokenizer.encode("Hello").ids
    assert (ids[0], ids[-1]) == (0, 1)
    assert assets.tokenizer.encode("Hello", add_special_tokens=False).ids == ids[1:-1]
    assert assets.add_bos
    assert assets.eos_token_ids == (1, 2)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        *(
            pytest.param({"model": kind}, f"model '{kind}' is not .*convert_hf_to_gguf", id=kind)
            for kind in ("t5", "bert", "rwkv", "plamo2", "gemma4", "no_vocab")
        ),
        pytest.param(
            {"pre": "tomorrows"}, "'tomorrows' is not known .* ones are.*convert_hf_to_gguf", id="unknown"
        ),
        pytest.param({"pre": "sarvam-moe"}, "'sarvam-moe' is spelt in characters", id="characters"),
    ],
)
def test_gguf_tokenizer_of_another_kind_is_refused_by_name(
    keys: dict[str, Any], word: str, tmp_path: Path
) -> None:
    tokenizer = train(None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    path = write_gguf_tokenizer(tmp_path / "m.gguf", tokenizer, **{"pre": "gpt-2", **keys})
    with pytest.raises(ModelError, match=word) as caught:
        load_assets(path)
    assert caught.value.reason == "UnsupportedModel"


def test_a_file_that_names_no_pre_tokenizer_is_cut_as_by_default(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = train(None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    ours = load_assets(write_gguf_tokenizer(tmp_path / "m.gguf", tokenizer, None)).tokenizer
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "tokenizer.ggml.pre" in record.message
    usual = load_assets(write_gguf_tokenizer(tmp_path / "usual.gguf", tokenizer, "default")).tokenizer
    assert len(caplog.records) == 1
    text = CORPUS[0] + CORPUS[1]
    assert ours.encode(text).ids == usual.encode(text).ids


def test_a_file_without_merges_is_refused(tmp_path: Path) -> None:
    """They would be every token that is longer than a byte."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("kimi-k2")
    writer.add_token_list(["a", "b", "ab"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"no tokenizer\.ggml\.merges; convert"):
        load_assets(tmp_path / "m.gguf")


def test_special_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    tokenizer = train(None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    path = write_gguf_tokenizer(tmp_path / "m.gguf", tokenizer, "gpt-2", bos_token_id=9999)
    with pytest.raises(ModelError, match="bos_token_id is 9999"):
        load_assets(path)


def test_bos_wanted_but_not_named_is_refused(tmp_path: Path) -> None:
    tokenizer = train(None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    path = write_gguf_tokenizer(tmp_path / "m.gguf", tokenizer, "gpt-2", add_bos_token=True)
    with pytest.raises(ModelError, match="bos_token"):
        load_assets(path)


def write_directory(folder: Path, **files: dict[str, Any]) -> Path:
    """A Hugging Face directory with a tokenizer and the given JSON files."""
    tokenizer = train(None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<|begin|>", "$A"], special_tokens=[("<|begin|>", 0)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_directory_gives_everything_that_its_files_say(tmp_path: Path) -> None:
    folder = write_directory(
        tmp_path,
        config={"max_position_embeddings": 128, "eos_token_id": 1},
        generation_config={"eos_token_id": [2, 1], "temperature": 0.6, "top_k": 20, "top_p": None, "seed": 3},
        tokenizer_config={
            "bos_token": {"content": "<|begin|>"},
            "eos_token": "<|end|>",
            "chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}],
        },
        special_tokens_map={"pad_token": "<|turn|>", "eos_token": "<|turn|>"},
    )
    assets = load_assets(folder)
    assert assets.special_tokens == {
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|turn|>",
    }
    assert assets.eos_token_ids == (2, 1) == read_eos_token_ids(folder)
    assert assets.generation_defaults == {"temperature": 0.6, "top_k": 20}
    assert assets.add_bos
    assert (assets.chat_template, assets.template_variants) == ("D", {"tool_use": "T"})
    text = "they thought there " * 9
    ids = assets.tokenizer.encode(text).ids
    assert ids[0] == 0
    assert assets.tokenizer.decode(ids) == text  # neither truncated nor padded


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        # the author says greedily: what else the file has is for those who draw all the same
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.0, "top_p": 0.9}),
        # the author says a temperature: nobody writes one down to have it ignored
        ({"temperature": 0.6}, {"temperature": 0.6}),
        ({"do_sample": None, "temperature": 0.6}, {"temperature": 0.6}),
        ({"do_sample": True, "temperature": 0.6}, {"temperature": 0.6}),
        ({"do_sample": True}, {}),
        ({"max_new_tokens": 40}, {"max_tokens": 40}),
        ({"max_new_tokens": None, "max_length": 20}, {}),
        # what authors write for "off" or "no limit"
        ({"max_new_tokens": 0}, {}),
        ({"max_new_tokens": -1}, {}),
        ({"top_k": 50.0}, {"top_k": 50}),
        ({"top_k": 0, "min_p": 0}, {"top_k": 0, "min_p": 0}),
        ({"top_k": -1, "temperature": 0}, {"top_k": -1, "temperature": 0}),
        ({"top_p": 0}, {"top_p": 1e-6}),
        ({"top_p": 1.5}, {"top_p": 1.0}),
        ({"repetition_penalty": 0.0}, {}),
        ({"eos_token_id": -1, "pad_token_id": -1}, {}),
    ],
)
def test_how_a_generation_config_says_to_pick_and_to_end(
    written: dict[str, Any], wanted: dict[str, float], tmp_path: Path
) -> None:
    folder = write_directory(tmp_path, generation_config=written)
    assert load_assets(folder).generation_defaults == wanted


def test_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    folder = write_directory(tmp_path, tokenizer_config={"chat_template": "old"})
    assert load_assets(folder).chat_template == "old"
    (folder / "chat_template.jinja").write_text("new")
    assert load_assets(folder).chat_template == "new"


def test_templates_in_a_folder_of_their_own_are_found(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "old"}]
    folder = write_directory(tmp_path, tokenizer_config={"chat_template": named})
    (folder / "additional_chat_templates").mkdir()
    for name in ("rag", "tool_use"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(f"new {name}")
    assets = load_assets(folder)
    assert assets.chat_template == "D"
    assert assets.template_variants == {"rag": "new rag", "tool_use": "new tool_use"}


_STATED: dict[str, Any] = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="nothing-said"),
        pytest.param({"split_special_tokens": True}, id="special-tokens-as-text"),
        *(
            pytest.param(
                {"added_tokens_decoder": {"1": {**_STATED, "content": "<|end|>", key: True}}}, id=key
            )
            for key in ("lstrip", "rstrip", "single_word", "normalized", "special")
        ),
        pytest.param(
            {"added_tokens_decoder": {"300": {**_STATED, "content": "<|new|>", "special": True}}}, id="new"
        ),
    ],
)
def test_text_is_encoded_as_transformers_does_with_what_the_files_say_of_tokens(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_directory(
        tmp_path,
        config={"model_type": "llama"},
        tokenizer_config={"bos_token": "<|begin|>", "eos_token": "<|end|>", **changes},
    )
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    text = (folder / "tokenizer_config.json").read_text().replace('"300"', f'"{size}"')
    (folder / "tokenizer_config.json").write_text(text)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = load_assets(folder).tokenizer
    for prompt in ("they  <|end|>  thought", "<|begin|>x<|end|>y<|new|>z", "a<|end|>", "<|END|> <|new|> "):
        for adds in (True, False):
            wanted = theirs(prompt, add_special_tokens=adds, truncation=False, padding=False)["input_ids"]
            assert ours.encode(prompt, add_special_tokens=adds).ids == wanted, prompt


def test_an_added_token_with_another_id_than_in_the_tokenizer_is_refused(tmp_path: Path) -> None:
    stated = {"added_tokens_decoder": {"2": {**_STATED, "content": "<|end|>", "special": True}}}
    folder = write_directory(tmp_path, tokenizer_config=stated)
    with pytest.raises(
        ModelError, match=r"tokenizer_config\.json: .*'<\|end\|>' the id 2, .* gives '<\|turn"
    ):
        load_assets(folder)


@pytest.mark.parametrize(
    "field",
    [
        *({"no_repeat_ngram_size": 3}, {"num_beams": 4}, {"min_new_tokens": 5}, {"suppress_tokens": [3]}),
        *({"typical_p": 0.9}, {"guidance_scale": 1.5}, {"stop_strings": ["x"]}, {"forced_eos_token_id": 2}),
        *({"sequence_bias": [[[1], 2.0]]}, {"top_h": 0.5}, {"token_healing": True}, {"eta_cutoff": 0.1}),
    ],
)
def test_the_log_names_what_a_generation_config_asks_for_in_vain(
    field: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_directory(tmp_path, generation_config=field)
    assert load_assets(folder).generation_defaults == {}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"generation_config.json: answers are picked without {field}" in record.message


def test_the_log_says_nothing_of_fields_that_do_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As `transformers` before 5 wrote them down when it was asked for all."""
    fields = {
        **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "typical_p"), 1),
        **dict.fromkeys(("length_penalty", "encoder_repetition_penalty", "guidance_scale"), 1.0),
        **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
        **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "diversity_penalty"), 0.0),
        **dict.fromkeys(("bad_words_ids", "forced_bos_token_id", "suppress_tokens", "penalty_alpha")),
        **dict.fromkeys(("early_stopping", "renormalize_logits", "token_healing", "use_cache"), False),
        **{"cache_implementation": "hybrid", "max_length": 20, "transformers_version": "4.50.0"},
    }
    assert load_assets(write_directory(tmp_path, generation_config=fields)).generation_defaults == {}
    assert not caplog.records


def test_template_in_a_json_file_of_its_own_is_found(tmp_path: Path) -> None:
    assert load_assets(write_directory(tmp_path, chat_template={"chat_template": "X"})).chat_template == "X"


def test_directory_with_a_tokenizer_only_has_no_defaults(tmp_path: Path) -> None:
    assets = load_assets(write_directory(tmp_path))
    assert (assets.chat_template, assets.eos_token_ids) == (None, ())
    assert assets.generation_defaults == {}
    assert not assets.add_bos


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = write_directory(tmp_path)
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"chat_template\.jinja cannot be read"):
        load_assets(folder)


@pytest.mark.parametrize(
    ("damage", "reason", "word"),
    [
        pytest.param({"tokenizer.json": None}, "UnsupportedModel", "tokenizer.json", id="no-tokenizer"),
        pytest.param({"tokenizer.json": "{}"}, "InvalidModel", "tokenizer.json", id="broken-tokenizer"),
        pytest.param(
            {"tokenizer.json": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"},
            "InvalidModel",
            "tokenizer.json is a Git LFS pointer",
            id="pointer-to-a-tokenizer",
        ),
        pytest.param({"config.json": "{"}, "InvalidModel", "config.json", id="broken-json"),
        pytest.param({"config.json": "[]"}, "InvalidModel", "not an object", id="json-of-another-kind"),
        pytest.param(
            {"tokenizer_config.json": '{"eos_token": "<|none|>"}'},
            "InvalidModel",
            "<|none|>",
            id="unknown-eos",
        ),
        pytest.param(
            {"tokenizer_config.json": '{"chat_template": [1]}'},
            "InvalidModel",
            "chat_template",
            id="bad-template",
        ),
        pytest.param(
            {"generation_config.json": '{"top_p": "0.9"}'}, "InvalidModel", "top_p", id="default-as-text"
        ),
        pytest.param(
            {"generation_config.json": '{"top_p": -1}'}, "InvalidModel", "top_p", id="less-than-no-mass"
        ),
        pytest.param({"generation_config.json": '{"top_k": 2.5}'}, "InvalidModel", "top_k", id="half-top-k"),
        pytest.param(
            {"generation_config.json": '{"do_sample": "false"}'}, "InvalidModel", "do_sample", id="do-sample"
        ),
        pytest.param(
            {"generation_config.json": '{"max_new_tokens": -2}'},
            "InvalidModel",
            "max_new_tokens",
            id="no-room",
        ),
        pytest.param({"generation_config.json": '{"min_p": true}'}, "InvalidModel", "min_p", id="true-min-p"),
        pytest.param(
            {"generation_config.json": '{"temperature": NaN}'}, "InvalidModel", "temperature", id="nan"
        ),
        pytest.param(
            {"generation_config.json": '{"repetition_penalty": -1}'},
            "InvalidModel",
            "repetition_penalty",
            id="no-penalty",
        ),
        pytest.param(
            {"generation_config.json": '{"eos_token_id": "2"}'},
            "InvalidModel",
            "generation_config.json: eos_token_id",
            id="eos-as-text",
        ),
        pytest.param(
            {"config.json": '{"eos_token_id": [1, -2]}'},
            "InvalidModel",
            "config.json: eos_token_id",
            id="negative-eos",
        ),
        pytest.param(
            {"tokenizer_config.json": '{"eos_token": "<|end|>", "added_tokens_decoder": {"x": []}}'},
            "InvalidModel",
            "added_tokens_decoder",
            id="bad-added-tokens",
        ),
    ],
)
def test_broken_directories_are_refused(
    damage: dict[str, str | None], reason: str, word: str, tmp_path: Path
) -> None:
    folder = write_directory(tmp_path)
    for name, text in damage.items():
        (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(ModelError) as caught:
        load_assets(folder)
    assert caught.value.reason == reason
    assert word in str(caught.value)


def test_gguf_defaults_are_read_and_checked(tmp_path: Path) -> None:
    tokenizer = train(None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    good = write_gguf_tokenizer(
        tmp_path / "good.gguf", tokenizer, "gpt-2", sampling={"temp": 0.5, "top_k": 40, "penalty_repeat": 1.5}
    )
    assert load_assets(good).generation_defaults == {
        "temperature": 0.5,
        "top_k": 40,
        "repetition_penalty": 1.5,
    }
    bad = write_gguf_tokenizer(tmp_path / "bad.gguf", tokenizer, "gpt-2", sampling={"top_p": -0.5})
    with pytest.raises(ModelError, match=r"bad\.gguf: general\.sampling\.top_p is -0\.5"):
        load_assets(bad)


def test_nothing_there_is_model_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_assets(tmp_path / "none")
    assert caught.value.reason == "ModelNotFound"


def test_several_gguf_files_need_a_name(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"a\.gguf, b\.gguf"):
        load_assets(tmp_path)


def test_gguf_header_equals_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("llama.numbers", [1, -2, 3])
    writer.add_array("llama.words", ["eins", "zwei", "drei"])
    writer.add_float64("llama.double", 0.1)
    writer.add_int64("llama.negative", -5)
    writer.add_bool("llama.flag", True)
    writer.add_custom_alignment(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = {
        key: value.contents()
        for key, value in gguf.GGUFReader(path).fields.items()
        if not key.startswith("GGUF.")
    }
    assert dict(read_gguf(path).metadata) == expected
    for texts, words in (((), ["", "", ""]), (("drei", "eins", "vier"), ["eins", "", "drei"])):
        assert dict(read_gguf(path, texts=texts).metadata) == expected | {"llama.words": words}


@given(data=st.data())
def test_damaged_gguf_headers_are_refused_or_read_never_worse(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = folder / "whole-header.gguf"
    if not whole.exists():
        tokenizer = train(None, pre_tokenizers.ByteLevel(add_prefix_space=False))
        write_gguf_tokenizer(whole, tokenizer, "gpt-2", eos_token_id=1)
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(300, len(content) - 1)))] = data.draw(st.integers(0, 255))
    damaged = folder / "damaged-header.gguf"
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    refusals = [why_refused(damaged, texts) for texts in (None, ())]
    assert all(refusal is None or str(damaged) in refusal for refusal in refusals)
    assert refusals[0] == refusals[1] or "utf-8" in (
        refusals[0] or ""
    )  # a text that nobody reads is not checked


def why_refused(path: Path, texts: tuple[()] | None) -> str | None:
    try:
        read_gguf(path, texts=texts)
    except ModelError as error:
        return str(error)
    return None
