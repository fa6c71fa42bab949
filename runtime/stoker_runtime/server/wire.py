"""Answers as OpenAI's JSON, whole and in pieces: chat completions and completions. Pure.

A stream's events differ in little, so what stays the same is serialised once per request and each token costs
one small JSON string and a join.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from msgspec import Raw

from stoker_runtime import __version__
from stoker_runtime.server.detokenize import TokenBytes
from stoker_runtime.server.generation import Delta, Usage
from stoker_runtime.server.json_text import to_json
from stoker_runtime.server.logprobs import ChatLogprobs, CompletionLogprobs, Logprobs, TokenNames

DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"stoker-{__version__}"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """What clients ask of an answer's form.

    Args:
        has_logprobs: log-probabilities of its tokens.
        include_usage: a stream ends with an event that has the usage.
        continuous_usage: each event of a stream has the usage so far of its choice, as vLLM's have.
        returns_token_ids: the ids of prompt and answer, as vLLM tells them.
        tokens_as_ids: log-probabilities call a token "token_id:" and its id.
    """

    has_logprobs: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    returns_token_ids: bool = False
    tokens_as_ids: bool = False


@dataclass(frozen=True, slots=True)
class PromptPart:
    """What an answer in one piece tells of a prompt.

    Args:
        token_ids: of the prompt.
        logprobs: JSON of its tokens' log-probabilities, when they were asked for.
    """

    token_ids: Sequence[int]
    logprobs: bytes | None = None


@dataclass(slots=True)
class WholeChoice:
    """A choice's deltas put together, for a response in one piece."""

    logprobs: Logprobs | None = None
    parts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.parts.append(delta.text)
        self.token_ids += delta.token_ids
        self.finish_reason = delta.finish_reason or self.finish_reason
        if self.logprobs is not None:
            self.logprobs.add(delta.tokens)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.parts)


class Shape(Protocol):
    """How one protocol writes an answer."""

    @property
    def options(self) -> AnswerOptions:
        """What the client asked for."""
        ...

    def opening(self, index: int, prompt: Sequence[int]) -> bytes:
        """Return the events before the first delta of a choice of a prompt of these tokens."""
        ...

    def events(self, delta: Delta, prompt: Sequence[int]) -> bytes:
        """Return the events of a delta; none for one that tells nothing."""
        ...

    def usage_event(self, usage: Usage) -> bytes:
        """Return the event that carries the usage alone."""
        ...

    def begin(self) -> WholeChoice:
        """Return an empty choice, to be filled with deltas."""
        ...

    def choice(self, index: int, choice: WholeChoice, prompt: PromptPart) -> bytes:
        """Return the JSON of a choice in an answer in one piece."""
        ...

    def whole(self, choices: Sequence[bytes], prompts: Sequence[PromptPart], usage: Usage) -> bytes:
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

    def __init__(self, head: Head, kind: str, options: AnswerOptions) -> None:
        self._fields = {
            "id": head.response_id,
            "object": kind,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": FINGERPRINT,
        }
        self._start = b"data: " + to_json(self._fields)[:-1] + b',"choices":[{"index":'
        self._has_usage = options.continuous_usage
        # With include_usage every event but the last says null, as OpenAI's do.
        self._end = b',"usage":null}\n\n' if options.include_usage else b"}\n\n"

    def event(self, index: int, tokens: tuple[int, int], *parts: bytes, beside: bytes = b"") -> bytes:
        """Return one event.

        Args:
            index: the choice's number.
            tokens: of the choice's prompt, and of the choice so far.
            parts: the rest of the choice.
            beside: what stands beside the choices.
        """
        end = _usage_so_far(*tokens) if self._has_usage else self._end
        return b"".join((self._start, b"%d" % index, *parts, b"}]", beside, end))

    def usage(self, usage: Usage) -> bytes:
        return b"data: " + to_json({**self._fields, "choices": [], "usage": usage_json(usage)}) + b"\n\n"

    def whole(self, kind: str, choices: Sequence[bytes], usage: Usage, **beside: Any) -> bytes:
        raw = [Raw(choice) for choice in choices]
        return to_json({**self._fields, "object": kind, "choices": raw, "usage": usage_json(usage), **beside})


def _usage_so_far(num_prompt_tokens: int, num_output_tokens: int) -> bytes:
    tokens = (num_prompt_tokens, num_output_tokens, num_prompt_tokens + num_output_tokens)
    return b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}\n\n' % tokens


class ChatShape:
    """POST /v1/chat/completions.

    Args:
        head: what every part carries.
        token_bytes: for the text of tokens in log-probabilities.
        options: what the client asked for.
    """

    def __init__(self, head: Head, token_bytes: TokenBytes, options: AnswerOptions) -> None:
        self.options = options
        self._events = _Events(head, "chat.completion.chunk", options)
        self._names = TokenNames(token_bytes, as_ids=options.tokens_as_ids)

    def opening(self, index: int, prompt: Sequence[int]) -> bytes:
        """Return the event that names the role."""
        delta = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        beside = b',"prompt_token_ids":' + to_json(prompt) if self.options.returns_token_ids else b""
        return self._events.event(index, (len(prompt), 0), delta, beside=beside)

    def events(self, delta: Delta, prompt: Sequence[int]) -> bytes:
        """Return up to two events: text with its tokens, and the end."""
        events = b""
        tokens = (len(prompt), delta.num_output_tokens)
        token_ids = _token_ids(self.options, delta.token_ids)
        is_end = delta.finish_reason is not None
        if delta.text or delta.tokens or (delta.token_ids and not is_end):
            logprobs = _logprobs_json(self._logprobs(), delta)
            content = (b',"delta":{"content":', to_json(delta.text), b'},"logprobs":', logprobs)
            events = self._events.event(delta.index, tokens, *content, b',"finish_reason":null', token_ids)
            token_ids = _token_ids(self.options, ())
        if is_end:
            end = (b',"delta":{},"logprobs":null,"finish_reason":', to_json(delta.finish_reason), token_ids)
            events += self._events.event(delta.index, tokens, *end)
        return events

    def usage_event(self, usage: Usage) -> bytes:
        """Return the event that carries the usage alone."""
        return self._events.usage(usage)

    def begin(self) -> WholeChoice:
        """Return an empty choice."""
        return WholeChoice(self._logprobs())

    def choice(self, index: int, choice: WholeChoice, prompt: PromptPart) -> bytes:
        """Return the JSON of a choice with its message."""
        content = {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": None if choice.logprobs is None else Raw(choice.logprobs.json()),
            "finish_reason": choice.finish_reason,
        }
        asked = {"token_ids": choice.token_ids} if self.options.returns_token_ids else {}
        return to_json({**content, **asked})

    def whole(self, choices: Sequence[bytes], prompts: Sequence[PromptPart], usage: Usage) -> bytes:
        """Return a chat.completion object; a chat has one prompt, which is told beside the choices."""
        beside = _prompt_fields(self.options, prompts[0])
        return self._events.whole("chat.completion", choices, usage, **beside)

    def _logprobs(self) -> Logprobs | None:
        return ChatLogprobs(self._names) if self.options.has_logprobs else None


class CompletionShape:
    """POST /v1/completions.

    Args:
        head: what every part carries.
        token_bytes: for the text of tokens in log-probabilities.
        options: what the client asked for.
    """

    def __init__(self, head: Head, token_bytes: TokenBytes, options: AnswerOptions) -> None:
        self.options = options
        self._events = _Events(head, "text_completion", options)
        self._names = TokenNames(token_bytes, as_ids=options.tokens_as_ids)

    def opening(self, index: int, prompt: Sequence[int]) -> bytes:
        """Return the prompt's tokens, when they were asked for: a completion has no role."""
        if not self.options.returns_token_ids:
            return b""
        nothing = b',"text":"","logprobs":null,"finish_reason":null,"token_ids":[]'
        return self._events.event(index, (len(prompt), 0), nothing, b',"prompt_token_ids":', to_json(prompt))

    def events(self, delta: Delta, prompt: Sequence[int]) -> bytes:
        """Return one event, or none when there is nothing to say."""
        if not (delta.text or delta.tokens or delta.token_ids or delta.finish_reason):
            return b""
        logprobs = _logprobs_json(self._logprobs(), delta)
        text = (b',"text":', to_json(delta.text), b',"logprobs":', logprobs)
        end = (b',"finish_reason":', to_json(delta.finish_reason))
        token_ids = _token_ids(self.options, delta.token_ids)
        tokens = (len(prompt), delta.num_output_tokens)
        return self._events.event(delta.index, tokens, *text, *end, token_ids)

    def usage_event(self, usage: Usage) -> bytes:
        """Return the event that carries the usage alone."""
        return self._events.usage(usage)

    def begin(self) -> WholeChoice:
        """Return an empty choice."""
        return WholeChoice(self._logprobs())

    def choice(self, index: int, choice: WholeChoice, prompt: PromptPart) -> bytes:
        """Return the JSON of a choice with its text; what is told of its prompt is told with it."""
        content = {
            "index": index,
            "text": choice.text,
            "logprobs": None if choice.logprobs is None else Raw(choice.logprobs.json()),
            "finish_reason": choice.finish_reason,
        }
        asked = {"token_ids": choice.token_ids} if self.options.returns_token_ids else {}
        return to_json({**content, **asked, **_prompt_fields(self.options, prompt)})

    def whole(self, choices: Sequence[bytes], prompts: Sequence[PromptPart], usage: Usage) -> bytes:
        """Return a text_completion object."""
        return self._events.whole("text_completion", choices, usage)

    def _logprobs(self) -> Logprobs | None:
        return CompletionLogprobs(self._names) if self.options.has_logprobs else None


def _logprobs_json(logprobs: Logprobs | None, delta: Delta) -> bytes:
    if logprobs is None:
        return b"null"
    logprobs.add(delta.tokens)
    return logprobs.json()


def _token_ids(options: AnswerOptions, token_ids: Sequence[int]) -> bytes:
    return b',"token_ids":' + to_json(token_ids) if options.returns_token_ids else b""


def _prompt_fields(options: AnswerOptions, prompt: PromptPart) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt_token_ids": prompt.token_ids} if options.returns_token_ids else {}
    if prompt.logprobs is not None:
        fields["prompt_logprobs"] = Raw(prompt.logprobs)
    return fields
