"""Tokens that a tokenizer gets besides those of its tokenizer.json, as transformers gives it them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from stoker_runtime.errors import ModelError

logger = logging.getLogger(__name__)

# In the order in which transformers gives ids to those that have none.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word")
_FURTHER = ("additional_special_tokens", "extra_special_tokens")


def added_token_ids(tokenizer_config: Mapping[str, Any], text: str, source: Path) -> list[int]:
    """Return the ids that the added tokens of a tokenizer_config.json give a text.

    Raises:
        ModelError: the file is malformed.
    """
    try:
        added = tokenizer_config.get("added_tokens_decoder") or {}
        return [int(token_id) for token_id, token in added.items() if token["content"] == text]
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{source}: added_tokens_decoder is malformed") from error


def add_stated_tokens(tokenizer: Tokenizer, tokenizer_config: Mapping[str, Any], source: Path) -> None:
    """Give added tokens what tokenizer_config.json says of them, which counts more than tokenizer.json.

    Source: what transformers does when it loads a tokenizer; it gives a token that tokenizer.json lacks the
    next free id, so one with another id in the file is refused here.

    Raises:
        ModelError: the file is malformed, or contradicts tokenizer.json.
    """
    try:
        stated = {
            int(token_id): AddedToken(**{key: token[key] for key in token if key != "__type"})
            for token_id, token in (tokenizer_config.get("added_tokens_decoder") or {}).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{source}: added_tokens_decoder is malformed") from error
    known = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([token for _, token in sorted(stated.items()) if repr(token) not in known])
    for token_id, token in stated.items():
        known_as = tokenizer.id_to_token(token_id)
        if known_as != token.content:
            other = "nothing" if known_as is None else repr(known_as)
            raise ModelError(
                f"{source}: added_tokens_decoder gives {token.content!r} the id {token_id}, which "
                f"tokenizer.json gives {other}; save the fast tokenizer again"
            )


def add_special_tokens(tokenizer: Tokenizer, fields: Mapping[str, Any], vocab_size: int | None) -> None:
    """Make what is named as special a special token; those that no file has an id for get the next free ones.

    Not so an eos_token that has none, for the model cannot end an answer with it.

    Args:
        tokenizer: gets them.
        fields: of special_tokens_map.json and tokenizer_config.json.
        vocab_size: of the model, where it is known. Tokens beyond it stay text: the model cannot read them.
    """
    eos = next((token.content for token in _special({"eos_token": fields.get("eos_token")})), None)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in _special(fields):
        if token.content in known:
            continue  # with flags of its own
        known.add(token.content)
        is_new = tokenizer.token_to_id(token.content) is None
        if is_new and token.content == eos:
            continue
        if is_new and vocab_size is not None and _next_id(tokenizer) >= vocab_size:
            logger.warning("the special token %r is beyond the vocabulary and stays text", token.content)
            continue
        tokenizer.add_special_tokens([token])


def _next_id(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _special(fields: Mapping[str, Any]) -> Iterator[AddedToken]:
    values = [fields.get(name) for name in _NAMED]
    for name in _FURTHER:
        listed = fields.get(name) or []
        values += (
            listed.values() if isinstance(listed, Mapping) else listed if isinstance(listed, list) else []
        )
    for value in values:
        if isinstance(value, str) and value:
            yield AddedToken(value, special=True, normalized=False)
        elif isinstance(value, Mapping) and isinstance(value.get("content"), str):
            flags = {key: value[key] for key in _FLAGS if isinstance(value.get(key), bool)}
            yield AddedToken(value["content"], special=True, **flags)
