"""What the server needs of a model's files: tokenizer, chat template, special tokens, defaults. No torch.

Reads Hugging Face directories (tokenizer.json and the small JSON files beside it) and GGUF files, whose
metadata holds the vocabulary and merges; the tokenizer is rebuilt from those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import GgufFile, find_gguf, read_gguf

SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

# Words and numbers as Llama 3 and Qwen 2 split them; only the longest run of digits differs.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GENERIC_SPLITS = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


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
        generation_defaults: the model's own sampling defaults, keys out of SAMPLING_DEFAULTS.
        max_position: tokens the model can attend over; 0 when the files do not say.
        template_variants: further named chat templates, such as ``tool_use``.
    """

    tokenizer: Tokenizer
    chat_template: str | None
    eos_token_ids: tuple[int, ...]
    special_tokens: Mapping[str, str]
    add_bos: bool
    generation_defaults: Mapping[str, float]
    max_position: int
    template_variants: Mapping[str, str] = field(default_factory=dict)

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
        raise ModelError(f"{path} is neither a directory nor a .gguf file", reason="UnsupportedModel")
    return _directory_assets(path)


def _directory_assets(path: Path) -> Assets:
    tokenizer = _read_tokenizer(path / "tokenizer.json")
    config = _read_json(path / "config.json")
    generation = _read_json(path / "generation_config.json")
    tokenizer_config = _read_json(path / "tokenizer_config.json")
    special = _special_tokens({**_read_json(path / "special_tokens_map.json"), **tokenizer_config})
    eos_ids = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id"))]
    if "eos_token" in special:
        eos_ids.append(_token_id(tokenizer, special["eos_token"], "tokenizer_config.json eos_token"))
    templates = _templates(path, tokenizer_config)
    return Assets(
        tokenizer=tokenizer,
        chat_template=templates.pop("default", None),
        eos_token_ids=tuple(dict.fromkeys(eos_ids)),
        special_tokens=special,
        add_bos=_adds_bos(tokenizer, special),
        generation_defaults={k: generation[k] for k in SAMPLING_DEFAULTS if generation.get(k) is not None},
        max_position=int(config.get("max_position_embeddings") or 0),
        template_variants=templates,
    )


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.exists():
        raise ModelError(
            f"{path.parent} has no tokenizer.json; save the model's fast tokenizer beside its weights",
            reason="UnsupportedModel",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception on anything it cannot parse
        raise ModelError(f"{path} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _token_id(tokenizer: Tokenizer, text: str, where: str) -> int:
    token_id = tokenizer.token_to_id(text)
    if token_id is None:
        raise ModelError(f"{where} is {text!r}, which is not in the vocabulary")
    return int(token_id)


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
    file = path / "chat_template.jinja"
    if file.exists():
        templates["default"] = file.read_text(encoding="utf-8")
    elif "default" not in templates:
        old = _read_json(path / "chat_template.json").get("chat_template")
        if isinstance(old, str):
            templates["default"] = old
    return templates


def _gguf_assets(gguf: GgufFile) -> Assets:
    meta = gguf.metadata
    tokens = meta.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError(f"{gguf.path} has no tokenizer.ggml.tokens")
    special = {}
    for name, key in (
        ("bos_token", "bos"),
        ("eos_token", "eos"),
        ("pad_token", "padding"),
        ("unk_token", "unknown"),
    ):
        token_id = meta.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            special[name] = _gguf_token(gguf, token_id, key)
    eos_keys = [f"tokenizer.ggml.{key}_token_id" for key in ("eos", "eot", "eom")]
    tokenizer = _gguf_tokenizer(gguf, special)
    defaults = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}
    sampling = {
        k.removeprefix("general.sampling."): v for k, v in meta.items() if k.startswith("general.sampling.")
    }
    named = {defaults.get(k, k): v for k, v in sampling.items()}
    prefix = "tokenizer.chat_template."
    return Assets(
        tokenizer=tokenizer,
        chat_template=meta.get("tokenizer.chat_template"),
        eos_token_ids=tuple(dict.fromkeys(meta[key] for key in eos_keys if key in meta)),
        special_tokens=special,
        add_bos=_adds_bos(tokenizer, special),
        generation_defaults={k: v for k, v in named.items() if k in SAMPLING_DEFAULTS},
        max_position=int(meta.get(f"{meta.get('general.architecture')}.context_length", 0)),
        template_variants={k.removeprefix(prefix): v for k, v in meta.items() if k.startswith(prefix)},
    )


def _gguf_token(gguf: GgufFile, token_id: int, key: str) -> str:
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    if not 0 <= token_id < len(tokens):
        raise ModelError(
            f"{gguf.path}: tokenizer.ggml.{key}_token_id is {token_id}, beyond {len(tokens)} tokens"
        )
    return str(tokens[token_id])


def _gguf_tokenizer(gguf: GgufFile, special: Mapping[str, str]) -> Tokenizer:
    """Rebuild a byte-level BPE tokenizer.

    Source: the pre-tokenizer names and what each splits on are llama.cpp's, in its llama-vocab.cpp.
    """
    meta = gguf.metadata
    model = meta.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise ModelError(
            f"{gguf.path}: tokenizer.ggml.model {model!r} is not supported (only gpt2, which is byte-level BPE); "
            "use the model's safetensors directory with its tokenizer.json",
            reason="UnsupportedModel",
        )
    pre = meta.get("tokenizer.ggml.pre")
    pre_tokenizer = _pre_tokenizer(pre)
    if pre_tokenizer is None:
        raise ModelError(
            f"{gguf.path}: tokenizer.ggml.pre {pre!r} is not supported (smollm, llama-bpe, qwen2, gpt-2, default); "
            "use the model's safetensors directory with its tokenizer.json",
            reason="UnsupportedModel",
        )
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta.get("tokenizer.ggml.merges", [])]
    is_llama3 = pre == "llama-bpe"
    try:
        bpe = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)}, merges=merges, ignore_merges=is_llama3
        )
    except Exception as error:  # the library raises bare Exception on a merge that is not in the vocabulary
        raise ModelError(f"{gguf.path}: the vocabulary and merges do not fit together: {error}") from error
    tokenizer = Tokenizer(bpe)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    types = meta.get("tokenizer.ggml.token_type", [])
    tokenizer.add_tokens(
        [
            AddedToken(token, special=type_id == _CONTROL, normalized=False)
            for token, type_id in zip(tokens, types, strict=False)
            if type_id in (_CONTROL, _USER_DEFINED)
        ]
    )
    _add_around(
        tokenizer,
        special,
        bos=meta.get("tokenizer.ggml.add_bos_token", is_llama3),
        eos=meta.get("tokenizer.ggml.add_eos_token", False),
    )
    return tokenizer


def _pre_tokenizer(name: str | None) -> pre_tokenizers.PreTokenizer | None:
    def split(*patterns: str) -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        return pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name == "gpt-2":
        return byte_level
    if name == "llama-bpe":
        return split(_LLAMA3_SPLIT % "{1,3}")
    if name == "qwen2":
        return split(_LLAMA3_SPLIT % "")
    return split(*_GENERIC_SPLITS) if name == "default" else None


def _add_around(tokenizer: Tokenizer, special: Mapping[str, str], *, bos: bool, eos: bool) -> None:
    """Make encode() put bos before and eos after a plain prompt."""
    names = [name for name, wanted in (("bos_token", bos), ("eos_token", eos)) if wanted]
    if not names:
        return
    missing = [name for name in names if name not in special]
    if missing:
        raise ModelError(f"the GGUF file adds a {missing[0]} to prompts but names none")
    single = [*([special["bos_token"]] if bos else []), "$A", *([special["eos_token"]] if eos else [])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        special_tokens=[(special[name], tokenizer.token_to_id(special[name])) for name in names],
    )
