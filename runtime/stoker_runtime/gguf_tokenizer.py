"""The tokenizer of a GGUF file, rebuilt from the vocabulary and merges in its metadata."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import GgufFile

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
_SPECIAL_NAMES = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}


def special_tokens(gguf: GgufFile) -> dict[str, str]:
    """Return the text of the named special tokens, by Hugging Face's names for them.

    Raises:
        ModelError: the file has no vocabulary, or a special token lies beyond it.
    """
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError(f"{gguf.path} has no tokenizer.ggml.tokens")
    found = {}
    for name in ("bos", "eos", "padding", "unknown"):
        token_id = gguf.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is None:
            continue
        if not 0 <= token_id < len(tokens):
            raise ModelError(
                f"{gguf.path}: tokenizer.ggml.{name}_token_id is {token_id}, beyond {len(tokens)} tokens"
            )
        found[_SPECIAL_NAMES[name]] = str(tokens[token_id])
    return found


def build_tokenizer(gguf: GgufFile, special: Mapping[str, str]) -> Tokenizer:
    """Rebuild a byte-level BPE tokenizer.

    Args:
        gguf: a file whose metadata has the vocabulary and merges.
        special: special_tokens(gguf).

    Raises:
        ModelError: reason UnsupportedModel (another kind of tokenizer) or InvalidModel.

    Source: the pre-tokenizer names and what each splits on are llama.cpp's, in its llama-vocab.cpp.
    """
    meta = gguf.metadata
    pre = meta.get("tokenizer.ggml.pre")
    pre_tokenizer = _supported_pre_tokenizer(gguf)
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


def _supported_pre_tokenizer(gguf: GgufFile) -> pre_tokenizers.PreTokenizer:
    model = gguf.metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise ModelError(
            f"{gguf.path}: tokenizer.ggml.model {model!r} is not supported (only gpt2, which is byte-level "
            "BPE); use the model's safetensors directory with its tokenizer.json",
            reason="UnsupportedModel",
        )
    pre = gguf.metadata.get("tokenizer.ggml.pre")
    pre_tokenizer = _pre_tokenizer(pre)
    if pre_tokenizer is None:
        raise ModelError(
            f"{gguf.path}: tokenizer.ggml.pre {pre!r} is not supported (smollm, llama-bpe, qwen2, gpt-2, "
            "default); use the model's safetensors directory with its tokenizer.json",
            reason="UnsupportedModel",
        )
    return pre_tokenizer


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
