"""Output tokens to text, one step at a time, and stop strings. Pure state machines.

A token stands for bytes, and a character may need several tokens. `TokenBytes` knows each token's bytes;
`Detokenizer` joins them, releases what no later token can change, and holds text back only as long as it
could still turn into a stop string. The text is what follows the prompt: a leading space stays.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer

from stoker_runtime.errors import ModelError
from stoker_runtime.server.stop_strings import START, StopStrings

_BYTE_TOKEN_FORMS = ("<0x{:02X}>", "<0x{:02x}>")
# Decoder steps that only shape the start of a text or join its pieces: nothing to do for a continuation.
_NEUTRAL_STEPS = {"Fuse", "Strip"}


class TokenBytes:
    """Which bytes each token of a vocabulary stands for; tables fill as tokens are seen.

    Raises:
        ModelError: reason UnsupportedModel; the tokenizer's tokens have no bytes of their own.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        steps = _decoder_steps(tokenizer)
        self._is_byte_level = any(step["type"] == "ByteLevel" for step in steps)
        self._has_byte_fallback = any(step["type"] == "ByteFallback" for step in steps)
        self._fallback_bytes = _byte_tokens(tokenizer) if self._has_byte_fallback else {}
        self._replacements = [pair for step in steps if (pair := _replacement(step)) is not None]
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        """Return the token's bytes; none for an id that the vocabulary leaves unused."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._compute(token_id)
        return known

    def text(self, token_id: int) -> str:
        """Return the token alone as text, with U+FFFD where its bytes are no character."""
        return self[token_id].decode("utf-8", "replace")

    def _compute(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._is_byte_level:
            codes = [_BYTE_OF.get(char) for char in token]
            # Added tokens are written as they are; one character outside the byte alphabet gives it away.
            return token.encode() if None in codes else bytes(code for code in codes if code is not None)
        for old, new in self._replacements:
            token = token.replace(old, new)
        byte = self.fallback_byte(token_id)
        return token.encode() if byte is None else bytes([byte])

    def fallback_byte(self, token_id: int) -> int | None:
        """Return the byte that the token spells out where the vocabulary lacks a character; None if none."""
        return self._fallback_bytes.get(token_id)

    def joiner(self) -> _Joiner:
        """Return what joins the bytes of one text's tokens."""
        return _FallbackJoiner(self) if self._has_byte_fallback else _Joiner(self)


class _Joiner:
    """Tokens to text where each token stands for any bytes: characters are released when they are whole."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> tuple[str, str]:
        """Take a token; return text of the tokens before it that became certain, and its own."""
        return "", self._decode(self._token_bytes[token_id])

    def finish(self) -> str:
        """Return the rest, with U+FFFD for bytes that never became a character."""
        return self._decode(b"", True)


class _FallbackJoiner(_Joiner):
    """Tokens to text where single bytes stand in for characters that the vocabulary lacks.

    A run of them is text only as a whole, as `tokenizers` has it: if it is no UTF-8, each of its bytes
    becomes U+FFFD, those of good characters as well. So a run is released when it ends.
    """

    def __init__(self, token_bytes: TokenBytes) -> None:
        super().__init__(token_bytes)
        self._run = bytearray()

    def push(self, token_id: int) -> tuple[str, str]:
        """See _Joiner.push. A token without text does not end a run."""
        byte = self._token_bytes.fallback_byte(token_id)
        if byte is not None:
            self._run.append(byte)
            return "", ""
        text = self._token_bytes[token_id].decode()
        return (self.finish(), text) if text else ("", "")

    def finish(self) -> str:
        """See _Joiner.finish."""
        run, self._run = bytes(self._run), bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)


class Detokenizer:
    """One request's output text.

    Args:
        token_bytes: the model's vocabulary.
        stop: strings that end the text; the first to be complete wins, the longer of two that end together.
        include_stop: the stop string itself is part of the text.
        skip_special_tokens: special tokens give no text.
        min_tokens: a stop string counts when it ends behind the text of this many first tokens.
    """

    def __init__(
        self,
        token_bytes: TokenBytes,
        *,
        stop: Sequence[str] | StopStrings = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._token_bytes = token_bytes
        self._skipped = token_bytes.special_ids if skip_special_tokens else frozenset()
        self._stop = stop if isinstance(stop, StopStrings) else StopStrings(stop)
        self._stop_state = START
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._joiner = token_bytes.joiner()
        self._held = ""
        self._num_decoded = 0
        self.num_released = 0  # characters handed out so far
        self.token_starts: list[int] = []  # characters of text before each token
        self.stop_string: str | None = None  # the stop string that was found

    def push(self, token_ids: Iterable[int]) -> str:
        """Take the next tokens and return the text that became certain. After a stop string: nothing more."""
        released = ""
        for token_id in token_ids:
            if self.stop_string is not None:
                break
            earlier, own = ("", "") if token_id in self._skipped else self._joiner.push(token_id)
            released += self._take(earlier, self._is_searching)
            released += self._take_own(own)
        return released

    def _take_own(self, text: str) -> str:
        """Take the text that begins with the next token, unless the text before it held a stop string."""
        if self.stop_string is not None:
            return ""
        self.token_starts.append(self._num_decoded)
        return self._take(text, self._is_searching)

    def finish(self) -> str:
        """Return what is still held back, with U+FFFD for bytes that never became a character."""
        if self.stop_string is not None:
            return ""
        released = self._take(self._joiner.finish(), self._is_searching)
        if self.stop_string is None:
            released += self._release(self._held)
            self._held = ""
        return released

    @property
    def num_decoded(self) -> int:
        """Characters so far, those held back and those behind a stop string included."""
        return self._num_decoded

    @property
    def _is_searching(self) -> bool:
        return len(self.token_starts) > self._min_tokens

    def _take(self, text: str, is_searched: bool) -> str:
        self._num_decoded += len(text)
        if not self._stop:
            return self._release(text)
        num_old = len(self._held)
        self._stop_state, found = self._stop.advance(self._stop_state, text, is_searched=is_searched)
        text = self._held + text
        if found is None:
            num_held = self._stop_state[1]
            self._held = text[len(text) - num_held :]
            return self._release(text[: len(text) - num_held])
        end = num_old + found.end
        start = end - found.size
        self.stop_string, self._held = text[start:end], ""
        return self._release(text[: end if self._include_stop else start])

    def _release(self, text: str) -> str:
        self.num_released += len(text)
        return text


def _byte_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """Return which tokens spell out a byte, and which byte."""
    found = (
        (tokenizer.token_to_id(form.format(byte)), byte) for byte in range(256) for form in _BYTE_TOKEN_FORMS
    )
    return {token_id: byte for token_id, byte in found if token_id is not None}


def _decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    if tokenizer.decoder is None:
        raise ModelError("the tokenizer has no decoder", reason="UnsupportedModel")
    # The pickle state is the decoder's JSON; the tokenizer's own JSON would carry the whole vocabulary along.
    decoder = json.loads(tokenizer.decoder.__getstate__())
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    for step in steps:
        if step["type"] in {"ByteLevel", "ByteFallback", *_NEUTRAL_STEPS} or _replacement(step) is not None:
            continue
        raise ModelError(
            f"the tokenizer's decoder {step['type']} is not supported "
            "(ByteLevel, ByteFallback, Metaspace and Replace are)",
            reason="UnsupportedModel",
        )
    return list(steps)


def _replacement(step: dict[str, Any]) -> tuple[str, str] | None:
    """Return what the step puts for what, if it is a plain replacement."""
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"]
    return None


def _byte_alphabet() -> dict[str, int]:
    """Return the character that stands for each byte in byte-level BPE, inverted.

    Source: GPT-2's byte-to-unicode table: printable Latin-1 stands for itself, the rest follows from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
