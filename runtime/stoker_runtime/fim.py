"""Fill in the middle: the tokens that models of code have for it, and the order they were trained with. Pure.

Source: the models' own cards and tokenizers (StarCoder, Qwen2.5-Coder, CodeGemma, Code Llama, DeepSeek-Coder,
Codestral); names of GGUF metadata as llama.cpp writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class FimTokens:
    """What stands around the text before a gap and the text after it.

    Args:
        prefix: id of the token in front of the text before the gap.
        suffix: id of the token in front of the text after it.
        middle: id of the token that the answer follows; None where it follows the text before the gap.
        suffix_first: the text after the gap comes first.
    """

    prefix: int
    suffix: int
    middle: int | None
    suffix_first: bool = False


# Names of the tokens for prefix, suffix and middle.
_NAMES: tuple[tuple[str, str, str], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
)
_CODESTRAL = ("[PREFIX]", "[SUFFIX]")  # its [MIDDLE] is not used
_GGUF_KEYS = (
    ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"),
    ("prefix_token_id", "suffix_token_id", "middle_token_id"),  # of older files
)


def find_fim(tokenizer: Tokenizer, metadata: Mapping[str, Any] | None = None) -> FimTokens | None:
    """Return a model's tokens for filling in the middle, None when it has none.

    Args:
        tokenizer: of the model. Only its added tokens count: a word is not what a model was trained on.
        metadata: of a GGUF file, which may name the tokens.
    """
    added = {token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items()}
    for keys in _GGUF_KEYS:
        ids = [(metadata or {}).get(f"tokenizer.ggml.{key}") for key in keys]
        prefix, suffix, middle = (token_id if isinstance(token_id, int) else None for token_id in ids)
        if prefix is not None and suffix is not None and added.get(_CODESTRAL[1]) == suffix:
            return FimTokens(prefix, suffix, None, suffix_first=True)
        if prefix is not None and suffix is not None and middle is not None:
            return FimTokens(prefix, suffix, middle)
    for first, second, third in _NAMES:
        if first in added and second in added and third in added:
            return FimTokens(added[first], added[second], added[third])
    if all(name in added for name in _CODESTRAL):
        return FimTokens(added[_CODESTRAL[0]], added[_CODESTRAL[1]], None, suffix_first=True)
    return None


def infill(tokenizer: Tokenizer, fim: FimTokens, prefix: str, suffix: str) -> list[int]:
    """Return the prompt whose answer belongs between two texts.

    What the tokenizer puts in front of any prompt stands in front of this one, too.
    """
    before, after = (
        list(encoding.ids)
        for encoding in tokenizer.encode_batch_fast([prefix, suffix], add_special_tokens=False)
    )
    before, after = [fim.prefix, *before], [fim.suffix, *after]
    middle = [] if fim.middle is None else [fim.middle]
    # The closing of a prompt, where a family has one, would stand between the gap and its answer.
    opening, _ = around(tokenizer)
    return [*opening, *(after + before if fim.suffix_first else before + after), *middle]


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return what a tokenizer puts in front of a prompt and behind it, such as the bos token."""
    ids, bare = (list(tokenizer.encode("a", add_special_tokens=special).ids) for special in (True, False))
    for num_before in range(len(ids)):
        if ids[num_before : num_before + len(bare)] == bare:
            return ids[:num_before], ids[num_before + len(bare) :]
    return [], []
