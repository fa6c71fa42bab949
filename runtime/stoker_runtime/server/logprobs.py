"""Log-probabilities as JSON: chat's list, the legacy parallel lists, and vLLM's of a prompt. Pure.

Each is written as its tokens come, so that a long answer leaves little to do at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from stoker_runtime.messages import TokenLogprob
from stoker_runtime.server.detokenize import TokenBytes
from stoker_runtime.server.generation import ShownToken
from stoker_runtime.server.json_text import to_json

# JSON has no infinity; vLLM answers the same.
_LOWEST_LOGPROB = -9999.0


class TokenNames:
    """How tokens are called.

    Args:
        token_bytes: the model's vocabulary.
        as_ids: by their ids, as vLLM's return_tokens_as_token_ids has it; texts are not always different.
    """

    def __init__(self, token_bytes: TokenBytes, *, as_ids: bool) -> None:
        self._as_ids = as_ids
        self.token_bytes = token_bytes

    def __getitem__(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self.token_bytes.text(token_id)


class Logprobs(Protocol):
    """The `logprobs` of a choice or of a part of it."""

    def add(self, tokens: Sequence[ShownToken]) -> None:
        """Append tokens."""
        ...

    def json(self) -> bytes:
        """Return the JSON of all tokens so far."""
        ...


class ChatLogprobs:
    """The shape of chat completions: an entry for each token, with its bytes."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._content: list[bytes] = []

    def add(self, tokens: Sequence[ShownToken]) -> None:
        """See Logprobs."""
        logprobs = [shown.logprob for shown in tokens if shown.logprob is not None]
        _extend(self._content, [self._entry(logprob) for logprob in logprobs])

    def json(self) -> bytes:
        """See Logprobs."""
        return b'{"content":[' + b",".join(self._content) + b'],"refusal":null}'

    def _entry(self, logprob: TokenLogprob) -> dict[str, Any]:
        return {
            **self._named(logprob.token_id, logprob.logprob),
            "top_logprobs": [self._named(token_id, value) for token_id, value in logprob.top],
        }

    def _named(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._names[token_id],
            "logprob": _finite(logprob),
            "bytes": list(self._names.token_bytes[token_id]),
        }


class CompletionLogprobs:
    """The legacy shape of completions: parallel lists."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._tokens: list[bytes] = []
        self._token_logprobs: list[bytes] = []
        self._top_logprobs: list[bytes] = []
        self._text_offset: list[bytes] = []

    def add(self, tokens: Sequence[ShownToken]) -> None:
        """See Logprobs. A prompt's first token has no log-probabilities, which is null."""
        logprobs = [shown.logprob for shown in tokens]
        _extend(self._tokens, [self._names[shown.token_id] for shown in tokens])
        _extend(self._token_logprobs, [lp and _finite(lp.logprob) for lp in logprobs])
        _extend(self._top_logprobs, [lp and self._named(lp) for lp in logprobs])
        _extend(self._text_offset, [shown.text_offset for shown in tokens])

    def json(self) -> bytes:
        """See Logprobs."""
        lists = (self._tokens, self._token_logprobs, self._top_logprobs, self._text_offset)
        form = b'{"tokens":[%b],"token_logprobs":[%b],"top_logprobs":[%b],"text_offset":[%b]}'
        return form % tuple(b",".join(parts) for parts in lists)

    def _named(self, logprob: TokenLogprob) -> dict[str, float]:
        """Return the likeliest tokens and this one; of two with one name, the likelier is told."""
        named: dict[str, float] = {}
        for token_id, value in [*logprob.top, (logprob.token_id, logprob.logprob)]:
            named.setdefault(self._names[token_id], _finite(value))
        return named


class PromptLogprobs:
    """vLLM's `prompt_logprobs`: null for the first token, for each other its own and the likeliest, by id."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._entries = [b"null"]

    def add(self, logprobs: Sequence[TokenLogprob]) -> None:
        """Append those of the prompt's next tokens."""
        _extend(self._entries, [self._entry(logprob) for logprob in logprobs])

    def json(self) -> bytes:
        """Return the JSON of all tokens so far."""
        return b"[" + b",".join(self._entries) + b"]"

    def _entry(self, logprob: TokenLogprob) -> dict[int, dict[str, Any]]:
        own_id = logprob.token_id
        ranked = {token_id: (value, rank) for rank, (token_id, value) in enumerate(logprob.top, start=1)}
        _, rank = ranked.get(own_id, (0.0, None))
        rows = {own_id: (logprob.logprob, logprob.rank or rank)}
        rows |= {token_id: row for token_id, row in ranked.items() if token_id != own_id}
        return {
            token_id: {
                "logprob": _finite(value),
                "rank": rank,
                "decoded_token": self._token_bytes.text(token_id),
            }
            for token_id, (value, rank) in rows.items()
        }


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)


def _extend(parts: list[bytes], values: list[Any]) -> None:
    if values:
        parts.append(to_json(values)[1:-1])
