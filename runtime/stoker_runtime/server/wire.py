"""Answers as OpenAI's JSON, whole and in pieces: chat completions and completions. Pure.

A stream's events differ in little, so what stays the same is serialised once per request and each token costs
one small JSON string and a join.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stoker_runtime import __version__
from stoker_runtime.server.detokenize import TokenBytes
from stoker_runtime.server.generation import Delta, ShownToken, Usage, WholeChoice
from stoker_runtime.server.json_text import to_json

DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"stoker-{__version__}"
# JSON has no infinity; vLLM answers the same.
_LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class Head:
    """What every part of one response carries.

    Args:
        response_id: the response's id, unique.
        created: Unix time in seconds.
        model: the name that answers carry.
    """

    response_id: str
    created: int
    model: str


class Shape(Protocol):
    """How one protocol writes an answer."""

    def opening(self, index: int) -> bytes:
        """Return the events before a choice's first delta."""
        ...

    def events(self, delta: Delta) -> bytes:
        """Return the events of a delta; none for one without text, tokens and end."""
        ...

    def usage_event(self, usage: Usage) -> bytes:
        """Return the event that carries the usage alone."""
        ...

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
        """Return the body of an answer in one piece."""
        ...


def usage_json(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class _Events:
    """The parts that all events of one stream share."""

    def __init__(self, head: Head, kind: str, include_usage: bool) -> None:
        self._fields = {
            "id": head.response_id,
            "object": kind,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": FINGERPRINT,
        }
        self._start = b"data: " + to_json(self._fields)[:-1] + b',"choices":[{"index":'
        # With include_usage every event but the last says null, as OpenAI's do.
        self._end = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"

    def event(self, index: int, *parts: bytes) -> bytes:
        return b"".join((self._start, b"%d" % index, *parts, self._end))

    def usage(self, usage: Usage) -> bytes:
        return b"data: " + to_json({**self._fields, "choices": [], "usage": usage_json(usage)}) + b"\n\n"

    def whole(self, kind: str, choices: list[dict[str, Any]], usage: Usage) -> bytes:
        return to_json({**self._fields, "object": kind, "choices": choices, "usage": usage_json(usage)})


class ChatShape:
    """POST /v1/chat/completions.

    Args:
        head: what every part carries.
        token_bytes: for the text of tokens in log-probabilities.
        has_logprobs: the client asked for log-probabilities.
        include_usage: the stream ends with an event that has the usage.
    """

    def __init__(
        self, head: Head, token_bytes: TokenBytes, *, has_logprobs: bool, include_usage: bool
    ) -> None:
        self._events = _Events(head, "chat.completion.chunk", include_usage)
        self._token_bytes = token_bytes
        self._has_logprobs = has_logprobs

    def opening(self, index: int) -> bytes:
        """Return the event that names the role."""
        delta = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return self._events.event(index, delta)

    def events(self, delta: Delta) -> bytes:
        """Return up to two events: text with its tokens, and the end."""
        events = b""
        if delta.text or delta.tokens:
            logprobs = to_json(self._logprobs(delta.tokens)) if self._has_logprobs else b"null"
            content = (b',"delta":{"content":', to_json(delta.text), b'},"logprobs":', logprobs)
            events = self._events.event(delta.index, *content, b',"finish_reason":null')
        if delta.finish_reason is not None:
            end = (b',"delta":{},"logprobs":null,"finish_reason":', to_json(delta.finish_reason))
            events += self._events.event(delta.index, *end)
        return events

    def usage_event(self, usage: Usage) -> bytes:
        """Return the event that carries the usage alone."""
        return self._events.usage(usage)

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
        """Return a chat.completion object."""
        return self._events.whole(
            "chat.completion",
            [
                {
                    "index": choice.index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": self._logprobs(choice.tokens) if self._has_logprobs else None,
                    "finish_reason": choice.finish_reason,
                }
                for choice in choices
            ],
            usage,
        )

    def _logprobs(self, tokens: Sequence[ShownToken]) -> dict[str, Any]:
        def entry(token_id: int, logprob: float) -> dict[str, Any]:
            data = self._token_bytes[token_id]
            return {
                "token": data.decode("utf-8", "replace"),
                "logprob": max(logprob, _LOWEST_LOGPROB),
                "bytes": list(data),
            }

        content = [
            {
                **entry(shown.logprob.token_id, shown.logprob.logprob),
                "top_logprobs": [entry(token_id, logprob) for token_id, logprob in shown.logprob.top],
            }
            for shown in tokens
        ]
        return {"content": content, "refusal": None}


class CompletionShape:
    """POST /v1/completions.

    Args:
        head: what every part carries.
        token_bytes: for the text of tokens in log-probabilities.
        has_logprobs: the client asked for log-probabilities.
        include_usage: the stream ends with an event that has the usage.
    """

    def __init__(
        self, head: Head, token_bytes: TokenBytes, *, has_logprobs: bool, include_usage: bool
    ) -> None:
        self._events = _Events(head, "text_completion", include_usage)
        self._token_bytes = token_bytes
        self._has_logprobs = has_logprobs

    def opening(self, index: int) -> bytes:
        """Return nothing: a completion has no role."""
        return b""

    def events(self, delta: Delta) -> bytes:
        """Return one event, or none when there is nothing to say."""
        if not (delta.text or delta.tokens or delta.finish_reason):
            return b""
        logprobs = to_json(self._logprobs(delta.tokens)) if self._has_logprobs else b"null"
        text = (b',"text":', to_json(delta.text), b',"logprobs":', logprobs)
        return self._events.event(delta.index, *text, b',"finish_reason":', to_json(delta.finish_reason))

    def usage_event(self, usage: Usage) -> bytes:
        """Return the event that carries the usage alone."""
        return self._events.usage(usage)

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
        """Return a text_completion object."""
        return self._events.whole(
            "text_completion",
            [
                {
                    "index": choice.index,
                    "text": choice.text,
                    "logprobs": self._logprobs(choice.tokens) if self._has_logprobs else None,
                    "finish_reason": choice.finish_reason,
                }
                for choice in choices
            ],
            usage,
        )

    def _logprobs(self, tokens: Sequence[ShownToken]) -> dict[str, Any]:
        """Return the legacy shape, parallel lists; of two tokens with one text, the likelier is named."""
        text = self._token_bytes.text
        top: list[dict[str, float]] = []
        for shown in tokens:
            named: dict[str, float] = {}
            for token_id, logprob in [*shown.logprob.top, (shown.logprob.token_id, shown.logprob.logprob)]:
                named.setdefault(text(token_id), max(logprob, _LOWEST_LOGPROB))
            top.append(named)
        return {
            "tokens": [text(shown.logprob.token_id) for shown in tokens],
            "token_logprobs": [max(shown.logprob.logprob, _LOWEST_LOGPROB) for shown in tokens],
            "top_logprobs": top,
            "text_offset": [shown.text_offset for shown in tokens],
        }
