"""What the server needs of a model's files: tokenizer, chat template, special tokens, defaults. No torch.

Reads Hugging Face directories (tokenizer.json and the small JSON files beside it) and GGUF files, whose
metadata holds the vocabulary and merges (see gguf_tokenizer).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from stoker_runtime.added_tokens import add_special_tokens, add_stated_tokens, added_token_ids
from stoker_runtime.errors import ModelError
from stoker_runtime.fim import FimTokens, find_fim
from stoker_runtime.generation_defaults import (
    SAMPLING_DEFAULTS,
    generation_config_defaults,
    sampling_defaults,
    token_ids,
    uncomputed_fields,
)
from stoker_runtime.gguf_file import GgufFile, find_gguf, read_gguf
from stoker_runtime.gguf_tokenizer import build_tokenizer, special_tokens
from stoker_runtime.json_files import read_object
from stoker_runtime.lfs import unreadable
from stoker_runtime.slow_tokenizer import slow_tokenizer

logger = logging.getLogger(__name__)

_GGUF_DEFAULTS = {f"general.sampling.{name}": name for name in SAMPLING_DEFAULTS} | {
    "general.sampling.temp": "temperature",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
_GGUF_END_TOKENS = ("eos", "eot", "eom")
# What ends a turn in chats. Files of Gemma and Phi-3 name only what ends a text, so llama.cpp goes by these.
_GGUF_TURN_ENDS = ("<end_of_turn>", "<|end|>", "<|im_end|>", "<|eot_id|>")
_GGUF_SPECIAL_TYPES = (3, 4)  # control and user-defined tokens


@dataclass(frozen=True)
class Assets:
    """The text side of a model.

    Args:
        tokenizer: encodes and decodes; with ``add_special_tokens=True`` it adds what the model wants around a
            plain prompt. Never truncates and never pads.
        chat_template: Jinja source, None when the model has none.
        eos_token_ids: any of these ends an answer.
        special_tokens: text of each named special token (``bos_token``, ``eos_token``, ``pad_token``,
            ``unk_token`` where the model has them): the variables a chat template sees.
        add_bos: a plain prompt is encoded with the bos token in front.
        generation_defaults: the model's own, by the request fields' names: SAMPLING_DEFAULTS and max_tokens.
        template_variants: further named chat templates, such as ``tool_use``.
        fim: the model's tokens for filling in the middle, None when it has none.
    """

    tokenizer: Tokenizer
    chat_template: str | None
    eos_token_ids: tuple[int, ...]
    special_tokens: Mapping[str, str]
    add_bos: bool
    generation_defaults: Mapping[str, float]
    template_variants: Mapping[str, str] = field(default_factory=dict)
    fim: FimTokens | None = None

    @property
    def bos_token(self) -> str | None:
        """Text of the beginning-of-sequence token, None when the model has none."""
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """Text of the main end-of-sequence token, None when the model has none."""
        return self.special_tokens.get("eos_token")


def load_assets(path: str | Path) -> Assets:
    """Read the text side of a model from a Hugging Face directory, a GGUF file or a directory with one.

    Raises:
        ModelError: reason ModelNotFound (nothing there), InvalidModel (broken files) or UnsupportedModel
            (a tokenizer this runtime cannot rebuild).
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(f"{path} does not exist", reason="ModelNotFound")
    gguf = find_gguf(path)
    if gguf is not None:
        return _gguf_assets(read_gguf(gguf))
    if not path.is_dir():
        raise ModelError(
            f"{path} is neither a directory nor a .gguf file; name one of them", reason="UnsupportedModel"
        )
    return _directory_assets(path)


def read_eos_token_ids(path: str | Path) -> tuple[int, ...]:
    """Return load_assets(path).eos_token_ids without building the tokenizer where the files allow that.

    Raises:
        ModelError: as load_assets does.
    """
    path = Path(path)
    gguf = find_gguf(path)
    if gguf is not None:
        return _gguf_eos_ids(read_gguf(gguf, texts=_GGUF_TURN_ENDS))
    return _directory_eos_ids(path, None)


def _directory_eos_ids(path: Path, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Collect the ids that generation_config.json, config.json and the tokenizer's eos_token name."""
    ids: list[int] = []
    for name, read in (("generation_config.json", _generation_config), ("config.json", _read_json)):
        found = read(path / name)
        text = found.get("text_config")  # of a model that sees images as well
        for part in (found, text if isinstance(text, Mapping) else {}):
            ids += token_ids(part.get("eos_token_id"), "eos_token_id", str(path / name))
    tokenizer_config = _read_json(path / "tokenizer_config.json")
    eos = _special_tokens(path, tokenizer_config).get("eos_token")
    if eos is not None:
        added = added_token_ids(tokenizer_config, eos, path / "tokenizer_config.json")
        if not added:
            known = (tokenizer or _read_tokenizer(path, tokenizer_config)).token_to_id(eos)
            if known is None:
                raise ModelError(
                    f"the eos_token of {path}, {eos!r}, is not in its vocabulary; save the tokenizer that "
                    "the model was trained with beside its weights"
                )
            added = [known]
        ids += added
    return tuple(dict.fromkeys(ids))


def _directory_assets(path: Path) -> Assets:
    tokenizer_config = _read_json(path / "tokenizer_config.json")
    tokenizer = _read_tokenizer(path, tokenizer_config)
    add_stated_tokens(tokenizer, tokenizer_config, path / "tokenizer_config.json")
    fields = {**_read_json(path / "special_tokens_map.json"), **tokenizer_config}
    add_special_tokens(tokenizer, fields, _vocab_size(path))
    # Special tokens in a text are then encoded as any other text.
    tokenizer.encode_special_tokens = tokenizer_config.get("split_special_tokens") is True
    special = _special_tokens(path, tokenizer_config)
    templates = _templates(path, tokenizer_config)
    return Assets(
        tokenizer=tokenizer,
        chat_template=templates.pop("default", None),
        eos_token_ids=_directory_eos_ids(path, tokenizer),
        special_tokens=special,
        add_bos=_adds_bos(tokenizer, special),
        generation_defaults=_generation_defaults(path / "generation_config.json"),
        template_variants=templates,
        fim=find_fim(tokenizer),
    )


def _generation_defaults(path: Path) -> dict[str, float]:
    values = _generation_config(path)
    if uncomputed := uncomputed_fields(values):
        logger.warning("%s: answers are picked without %s, which is not computed here", path, uncomputed)
    return generation_config_defaults(values, str(path))


def _vocab_size(path: Path) -> int | None:
    config = _read_json(path / "config.json")
    text = config.get("text_config")
    size = {**config, **(text if isinstance(text, Mapping) else {})}.get("vocab_size")
    return size if isinstance(size, int) else None


def _read_tokenizer(path: Path, tokenizer_config: Mapping[str, Any]) -> Tokenizer:
    file = path / "tokenizer.json"
    try:
        tokenizer = (
            Tokenizer.from_file(str(file)) if file.exists() else slow_tokenizer(path, tokenizer_config)
        )
    except ModelError:
        raise
    except Exception as error:  # the library raises bare Exception on anything it cannot parse
        raise ModelError(f"{unreadable(file, error)}; download it anew") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _generation_config(path: Path) -> dict[str, Any]:
    """Read a file that a model can do without, and that some have and is empty."""
    return {} if path.exists() and path.stat().st_size == 0 else _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _special_tokens(path: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    merged = {**_read_json(path / "special_tokens_map.json"), **tokenizer_config}
    found = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = merged.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _adds_bos(tokenizer: Tokenizer, special: Mapping[str, str]) -> bool:
    if "bos_token" not in special:
        return False
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    return bool(ids) and ids[0] == tokenizer.token_to_id(special["bos_token"])


def _templates(path: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates by name; a file of its own wins over tokenizer_config.json."""
    declared = tokenizer_config.get("chat_template")
    if isinstance(declared, str):
        templates = {"default": declared}
    else:
        try:
            templates = {entry["name"]: entry["template"] for entry in declared or []}
        except (TypeError, KeyError) as error:
            raise ModelError(f"{path}/tokenizer_config.json: chat_template is malformed") from error
    files = {"default": path / "chat_template.jinja"} if (path / "chat_template.jinja").exists() else {}
    files |= {file.stem: file for file in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    for name, file in files.items():
        try:
            templates[name] = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error
    if "default" not in templates:
        old = _read_json(path / "chat_template.json").get("chat_template")
        if isinstance(old, str):
            templates["default"] = old
    return templates


def _gguf_assets(gguf: GgufFile) -> Assets:
    meta = gguf.metadata
    special = special_tokens(gguf)
    tokenizer = build_tokenizer(gguf, special)
    prefix = "tokenizer.chat_template."
    return Assets(
        tokenizer=tokenizer,
        chat_template=_template(gguf, "tokenizer.chat_template"),
        eos_token_ids=_gguf_eos_ids(gguf),
        special_tokens=special,
        add_bos=_adds_bos(tokenizer, special),
        generation_defaults=sampling_defaults(meta, _GGUF_DEFAULTS, str(gguf.path)),
        template_variants={
            key.removeprefix(prefix): _template(gguf, key) or "" for key in meta if key.startswith(prefix)
        },
        fim=find_fim(tokenizer, meta),
    )


def _template(gguf: GgufFile, key: str) -> str | None:
    template = gguf.metadata.get(key)
    if template is not None and not isinstance(template, str):
        raise ModelError(f"{gguf.path}: {key} is not a text")
    return template


def _gguf_eos_ids(gguf: GgufFile) -> tuple[int, ...]:
    keys = [f"tokenizer.ggml.{name}_token_id" for name in _GGUF_END_TOKENS]
    ids = [token_id for key in keys for token_id in token_ids(gguf.metadata.get(key), key, str(gguf.path))]
    tokens, types = (gguf.metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if isinstance(tokens, list) and isinstance(types, list):
        ids += [
            token_id
            for token_id, (token, kind) in enumerate(zip(tokens, types, strict=False))
            if kind in _GGUF_SPECIAL_TYPES and token in _GGUF_TURN_ENDS
        ]
    return tuple(dict.fromkeys(ids))
