"""The tokenizer of a GGUF file, rebuilt from the vocabulary and the merges or scores in its metadata."""

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
# GPT-4o's, which Phi-4-mini has: words end where upper-case letters follow lower-case ones.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GENERIC_SPLITS = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
# By tokenizer.ggml.pre. The smaug-bpe files are those of Llama 3's tokenizer that add no bos (SmolLM 3), the
# dbrx ones those of GPT-4's (Phi-4, OLMo 2).
_SPLITS = {
    "llama-bpe": (_LLAMA3_SPLIT % "{1,3}",),
    "smaug-bpe": (_LLAMA3_SPLIT % "{1,3}",),
    "dbrx": (_LLAMA3_SPLIT % "{1,3}",),
    "qwen2": (_LLAMA3_SPLIT % "",),
    "gpt-4o": (_CASED_SPLIT,),
    "default": _GENERIC_SPLITS,
}
_DIGITS_APART = ("smollm", "refact", "starcoder")  # refact is Granite's
_IGNORES_MERGES = ("llama-bpe", "smaug-bpe")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # tokenizer.ggml.token_type
_KEEP_SPACE = ("<unk>", "<s>", "<|endoftext|>")  # of Phi-3's special tokens
_SPACE = "\u2581"  # what SentencePiece writes for one
_SPECIAL_NAMES = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}


def special_tokens(gguf: GgufFile) -> dict[str, str]:
    """Return the text of the named special tokens, by Hugging Face's names for them.

    Raises:
        ModelError: the file has no vocabulary, or a special token lies beyond it.
    """
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens) or not tokens:
        raise ModelError(f"{gguf.path} has no tokens in tokenizer.ggml.tokens")
    found = {}
    for name in ("bos", "eos", "padding", "unknown"):
        token_id = gguf.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is None:
            continue
        if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
            raise ModelError(
                f"{gguf.path}: tokenizer.ggml.{name}_token_id is {token_id}, beyond {len(tokens)} tokens"
            )
        found[_SPECIAL_NAMES[name]] = str(tokens[token_id])
    return found


def build_tokenizer(gguf: GgufFile, special: Mapping[str, str]) -> Tokenizer:
    """Rebuild a tokenizer: byte-level BPE, or SentencePiece's BPE as Llama 2 and Mistral have it.

    Args:
        gguf: a file whose metadata has the vocabulary and merges, or scores.
        special: special_tokens(gguf).

    Raises:
        ModelError: reason UnsupportedModel (another kind of tokenizer) or InvalidModel.
    """
    model = gguf.metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        return _byte_level(gguf, special)
    if model == "llama":
        return _sentencepiece(gguf, special)
    raise ModelError(
        f"{gguf.path}: tokenizer.ggml.model {model!r} is not supported (gpt2, byte-level BPE, and llama, "
        "SentencePiece's BPE, are); use the model's safetensors directory with its tokenizer.json",
        reason="UnsupportedModel",
    )


def _byte_level(gguf: GgufFile, special: Mapping[str, str]) -> Tokenizer:
    """Source: the pre-tokenizer names and what each splits on are llama.cpp's, in its llama-vocab.cpp."""
    meta = gguf.metadata
    pre = meta.get("tokenizer.ggml.pre")
    pre_tokenizer = _supported_pre_tokenizer(gguf)
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta.get("tokenizer.ggml.merges", [])]
    try:
        bpe = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre in _IGNORES_MERGES,
        )
    except Exception as error:  # the library raises bare Exception on a merge that is not in the vocabulary
        raise ModelError(f"{gguf.path}: the vocabulary and merges do not fit together: {error}") from error
    tokenizer = Tokenizer(bpe)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, gguf)
    _add_around(
        tokenizer,
        special,
        bos=meta.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"),
        eos=meta.get("tokenizer.ggml.add_eos_token", False),
    )
    return tokenizer


def _sentencepiece(gguf: GgufFile, special: Mapping[str, str]) -> Tokenizer:
    """Of two neighbours whose joined text has the highest score, one token is made, as long as there are any.

    Characters that the vocabulary lacks are spelt in bytes. Each text between special tokens begins with a
    space, unless the file says otherwise. So does llama.cpp, and the tokenizer.json of these models.
    """
    meta = gguf.metadata
    for key in ("precompiled_charsmap", "remove_extra_whitespaces"):
        if meta.get(f"tokenizer.ggml.{key}"):
            raise ModelError(f"{gguf.path}: tokenizer.ggml.{key} is not supported", reason="UnsupportedModel")
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    scores, types = meta.get("tokenizer.ggml.scores", []), meta.get("tokenizer.ggml.token_type", [])
    if not len(tokens) == len(scores) == len(types):
        raise ModelError(
            f"{gguf.path}: {len(tokens)} tokens have {len(scores)} scores and {len(types)} types"
        )
    pieces = {
        token: score
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind == _NORMAL and token
    }
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=_merges(pieces),
            unk_token=special.get("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    has_prefix = meta.get("tokenizer.ggml.add_space_prefix", True)
    prefix = [normalizers.Prepend(_SPACE)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if has_prefix else []),
        ]
    )
    _add_tokens(tokenizer, gguf)
    _add_around(
        tokenizer,
        special,
        bos=meta.get("tokenizer.ggml.add_bos_token", True),
        eos=meta.get("tokenizer.ggml.add_eos_token", False),
    )
    return tokenizer


def _merges(pieces: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, the best-scored piece first."""
    found = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in pieces.items()
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    return [(left, right) for _, left, right in sorted(found)]


def _add_tokens(tokenizer: Tokenizer, gguf: GgufFile) -> None:
    """Find control and user-defined tokens in a text before anything else is done with it."""
    meta = gguf.metadata
    types = meta.get("tokenizer.ggml.token_type", [])
    # Phi-3's swallow what space follows them; its files do not say so, and llama.cpp knows it as well.
    is_phi3 = (meta.get("general.architecture"), meta.get("tokenizer.ggml.model")) == ("phi3", "llama")
    tokenizer.add_tokens(
        [
            AddedToken(
                token,
                special=kind != _USER_DEFINED,
                normalized=False,
                rstrip=is_phi3 and token not in _KEEP_SPACE,
            )
            for token, kind in zip(meta["tokenizer.ggml.tokens"], types, strict=False)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )


def _supported_pre_tokenizer(gguf: GgufFile) -> pre_tokenizers.PreTokenizer:
    pre = gguf.metadata.get("tokenizer.ggml.pre")
    pre_tokenizer = _pre_tokenizer(pre)
    if pre_tokenizer is None:
        raise ModelError(
            f"{gguf.path}: tokenizer.ggml.pre {pre!r} is not supported "
            f"({', '.join((*_SPLITS, *_DIGITS_APART, 'gpt-2'))}); use the model's safetensors directory with "
            "its tokenizer.json",
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
    if name in _DIGITS_APART:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name == "gpt-2":
        return byte_level
    return split(*_SPLITS[name]) if name in _SPLITS else None


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
