"""Tokenizers of old repositories, which have a vocabulary and merges and no tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_splitting import SPLITTINGS
from stoker_runtime.json_files import read_object

# By tokenizer_class: as which byte-level tokenizer a text is cut.
_CLASSES = {"GPT2Tokenizer": "gpt-2", "GPT2TokenizerFast": "gpt-2"} | {
    "Qwen2Tokenizer": "qwen2",
    "Qwen2TokenizerFast": "qwen2",
}


def slow_tokenizer(folder: Path, tokenizer_config: Mapping[str, Any]) -> Tokenizer:
    """Build a tokenizer of vocab.json and merges.txt, as transformers does for the classes of _CLASSES.

    Args:
        folder: of the model; it has no tokenizer.json.
        tokenizer_config: its tokenizer_config.json.

    Raises:
        ModelError: reason UnsupportedModel where that is not possible; says how to convert.
    """
    kind = tokenizer_config.get("tokenizer_class")
    name = _CLASSES.get(kind) if isinstance(kind, str) else None
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if name is None or not vocabulary.exists() or not merges.exists():
        raise _not_fast(folder, kind)
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the library raises bare Exception on anything it cannot parse
        raise ModelError(
            f"{vocabulary} and {merges.name} cannot be read: {error}; download them anew"
        ) from error
    splitting = SPLITTINGS[name]
    normalizer = splitting.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    if name == "gpt-2" and tokenizer_config.get("add_prefix_space") is True:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    if (folder / "added_tokens.json").exists():
        _add_tokens(tokenizer, folder / "added_tokens.json")
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, path: Path) -> None:
    added = read_object(path)
    for text, token_id in sorted(added.items(), key=lambda item: json.dumps(item[1]).zfill(20)):
        tokenizer.add_tokens([AddedToken(text, special=True, normalized=False)])
        if tokenizer.token_to_id(text) != token_id:
            raise ModelError(
                f"{path} gives {text!r} the id {token_id}, which is not the next free one; save the fast "
                "tokenizer beside the weights"
            )


def _not_fast(folder: Path, kind: Any) -> ModelError:
    pieces = [name for name in ("tokenizer.model", "spiece.model", "vocab.json") if (folder / name).exists()]
    held = f" ({', '.join(pieces)}: {kind or 'of no stated class'})" if pieces else ""
    return ModelError(
        f"{folder} has no tokenizer.json{held}; save the model's fast tokenizer beside its weights: python "
        f'-c \'from transformers import AutoTokenizer as T; T.from_pretrained("{folder}").save_pretrained'
        f'("{folder}")\', with the packages transformers, sentencepiece and protobuf',
        reason="UnsupportedModel",
    )
