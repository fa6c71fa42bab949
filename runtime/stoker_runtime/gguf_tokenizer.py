"""The tokenizer of a GGUF file, rebuilt from the vocabulary and the merges or scores in its metadata."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import GgufFile
from stoker_runtime.gguf_splitting import DEFAULT, NOT_BYTE_LEVEL, SPLITTINGS, Splitting

logger = logging.getLogger(__name__)

# What to do about a file that cannot be read.
_OTHERWISE = (
    "convert the model anew with today's convert_hf_to_gguf.py of llama.cpp, or use its safetensors folder "
    "with its tokenizer.json"
)
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
        raise ModelError(f"{gguf.path} has no tokens in tokenizer.ggml.tokens; {_OTHERWISE}")
    found = {}
    for name in ("bos", "eos", "padding", "unknown"):
        token_id = gguf.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is None:
            continue
        if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
            raise ModelError(
                f"{gguf.path}: tokenizer.ggml.{name}_token_id is {token_id}, beyond {len(tokens)} tokens; "
                f"{_OTHERWISE}"
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
        f"SentencePiece's BPE, are); {_OTHERWISE}",
        reason="UnsupportedModel",
    )


def _byte_level(gguf: GgufFile, special: Mapping[str, str]) -> Tokenizer:
    meta = gguf.metadata
    splitting = _splitting(gguf)
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    try:
        bpe = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=_stated_merges(gguf),
            ignore_merges=splitting.ignores_merges,
        )
    except ModelError:
        raise
    except Exception as error:  # the library raises bare Exception on a merge that is not in the vocabulary
        raise ModelError(
            f"{gguf.path}: the vocabulary and merges do not fit together: {error}; {_OTHERWISE}"
        ) from error
    tokenizer = Tokenizer(bpe)
    normalizer = splitting.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, gguf)
    _add_around(
        tokenizer,
        special,
        bos=meta.get("tokenizer.ggml.add_bos_token", splitting.adds_bos),
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
            raise ModelError(
                f"{gguf.path}: tokenizer.ggml.{key} is not supported; {_OTHERWISE}", reason="UnsupportedModel"
            )
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    scores, types = meta.get("tokenizer.ggml.scores", []), meta.get("tokenizer.ggml.token_type", [])
    if not len(tokens) == len(scores) == len(types):
        raise ModelError(
            f"{gguf.path}: {len(tokens)} tokens have {len(scores)} scores and {len(types)} types; "
            f"{_OTHERWISE}"
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


def _splitting(gguf: GgufFile) -> Splitting:
    pre = gguf.metadata.get("tokenizer.ggml.pre")
    if pre is None:  # files of before May 2024
        logger.warning(
            "%s does not say how its tokenizer cuts a text into words (tokenizer.ggml.pre): it is cut as "
            "llama.cpp does by default, which costs quality; convert the model anew with today's "
            "convert_hf_to_gguf.py",
            gguf.path,
        )
        return DEFAULT
    found = SPLITTINGS.get(pre) if isinstance(pre, str) else None
    if found is not None:
        return found
    why = "is spelt in characters and not in bytes" if pre in NOT_BYTE_LEVEL else "is not known"
    raise ModelError(
        f"{gguf.path}: tokenizer.ggml.pre {pre!r} {why} (llama.cpp's {len(SPLITTINGS)} byte-level ones "
        f"are); {_OTHERWISE}",
        reason="UnsupportedModel",
    )


def _stated_merges(gguf: GgufFile) -> list[tuple[str, str]]:
    merges = gguf.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ModelError(f"{gguf.path} has no tokenizer.ggml.merges; {_OTHERWISE}")
    cuts = ((merge, merge.find(" ", 1)) for merge in merges)  # a part may begin with a space
    return [(merge[:cut], merge[cut + 1 :]) for merge, cut in cuts]


def _add_around(tokenizer: Tokenizer, special: Mapping[str, str], *, bos: bool, eos: bool) -> None:
    """Make encode() put bos before and eos after a plain prompt."""
    names = [name for name, wanted in (("bos_token", bos), ("eos_token", eos)) if wanted]
    if not names:
        return
    missing = [name for name in names if name not in special]
    if missing:
        raise ModelError(f"the GGUF file adds a {missing[0]} to prompts but names none; {_OTHERWISE}")
    single = [*([special["bos_token"]] if bos else []), "$A", *([special["eos_token"]] if eos else [])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        special_tokens=[(special[name], tokenizer.token_to_id(special[name])) for name in names],
    )
