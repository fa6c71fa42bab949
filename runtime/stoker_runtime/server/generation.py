"""One HTTP request's work for the engine, whatever protocol it came in, and what comes back. Pure.

`Generation` is prompts times n choices; `Choice` turns one choice's engine outputs into `Delta`s of text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from stoker_runtime.errors import RequestError
from stoker_runtime.messages import AddRequest, FinishReason, RequestOutput, SamplingParams, TokenLogprob
from stoker_runtime.server.detokenize import Detokenizer, TokenBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What to generate. Choice number i belongs to prompt i // n.

    Args:
        prompts: token ids of each.
        sampling: of every choice; with `prompt_logprobs` those of the prompt come along.
        n: choices of each prompt.
        best_of: where it is more than n, so many are generated of each prompt, and those n are answered whose
            tokens are the likeliest on average. Never in a stream.
        stop: strings that end the text.
        include_stop: the stop string is part of the text.
        skip_special_tokens: special tokens give no text.
        cache_salt: requests share prefix blocks only within one salt.
        priority: lower is served earlier.
        echo: by prompt, the text in front of each of its answers; None: none.
        shows_prompt_logprobs: the prompt's log-probabilities are told apart from those of the answer.
        returns_token_ids: the ids of prompt and answer are told.
        drops_output: only the prompt was asked for: the token that is generated is neither told nor counted.
    """

    prompts: list[list[int]]
    sampling: SamplingParams
    n: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    cache_salt: str = ""
    priority: int = 0
    best_of: int = 1
    echo: tuple[str, ...] | None = None
    shows_prompt_logprobs: bool = False
    returns_token_ids: bool = False
    drops_output: bool = False

    @property
    def num_choices(self) -> int:
        """Engine requests this becomes."""
        return len(self.prompts) * self.n


def add_requests(generation: Generation, name: str, max_model_len: int, arrival_s: float) -> list[AddRequest]:
    """Return one engine request per choice.

    Args:
        generation: what to generate; its prompts are shorter than max_model_len.
        name: the engine requests are called name-0, name-1, ...
        max_model_len: prompt and output tokens together stay within it.
        arrival_s: time.monotonic() when the HTTP request came.
    """
    choices = [(prompt, number) for prompt in generation.prompts for number in range(generation.n)]
    return [
        AddRequest(
            request_id=f"{name}-{index}",
            prompt_token_ids=prompt,
            sampling=_choice_sampling(generation.sampling, number, max_model_len - len(prompt)),
            cache_salt=generation.cache_salt,
            priority=generation.priority,
            arrival_s=arrival_s,
        )
        for index, (prompt, number) in enumerate(choices)
    ]


def _choice_sampling(sampling: SamplingParams, number: int, room: int) -> SamplingParams:
    """Keep a choice within the model's length, and give each choice of one prompt a seed of its own."""
    seed = None if sampling.seed is None else (sampling.seed + number) % 2**63
    return msgspec.structs.replace(sampling, max_tokens=min(sampling.max_tokens, room), seed=seed)


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token of the text with its log-probabilities and the characters of text before it."""

    logprob: TokenLogprob
    text_offset: int


@dataclass(frozen=True, slots=True)
class Delta:
    """What a step added to a choice."""

    index: int
    text: str
    tokens: list[ShownToken] = field(default_factory=list)  # only when log-probabilities were asked for
    finish_reason: str | None = None  # "stop" or "length"


class Choice:
    """One choice on its way: engine outputs in, text out.

    The end-of-sequence or stop token that ends a choice is counted as an output token and gives no text,
    unless the request includes stop strings in its output.
    """

    def __init__(self, index: int, generation: Generation, token_bytes: TokenBytes) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self._include_stop = generation.include_stop
        self._wants_logprobs = generation.sampling.logprobs is not None
        self._unshown: list[ShownToken] = []
        self._text = Detokenizer(
            token_bytes,
            stop=generation.stop,
            include_stop=generation.include_stop,
            skip_special_tokens=generation.skip_special_tokens,
            min_tokens=generation.sampling.min_tokens,
        )

    def take(self, output: RequestOutput) -> Delta:
        """Take one engine output. After it, a finish_reason without one in the output means: abort the rest.

        Raises:
            RequestError: 500; the engine could not answer this request alone. 503; it gave the request up.
        """
        if output.finish_reason is FinishReason.ERROR:
            raise RequestError(
                f"the engine could not answer: {output.error}",
                status=500,
                error_type="server_error",
                code="generation_failed",
            )
        if output.finish_reason is FinishReason.ABORT:
            raise RequestError(
                "the server is shutting down", status=503, error_type="server_error", code="shutting_down"
            )
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        is_silent_end = output.stop_token_id is not None and not self._include_stop
        num_before = len(self._text.token_starts)
        text = self._text.push(output.token_ids[:-1] if is_silent_end else output.token_ids)
        starts = self._text.token_starts[num_before:]
        if self._wants_logprobs:
            # Fewer starts than tokens: a token without text ended it, or a stop string cut the rest off.
            self._unshown += [
                ShownToken(logprob, start) for logprob, start in zip(output.logprobs, starts, strict=False)
            ]
        if self._text.stop_string is None and output.finish_reason is not None:
            text += self._text.finish()
            self.finish_reason = output.finish_reason.value
        if self._text.stop_string is not None:
            self.finish_reason = "stop"
        # Tokens behind a stop string are no part of the answer.
        self.num_output_tokens += len(starts) if self._text.stop_string else len(output.token_ids)
        return Delta(self.index, text, self._shown(), self.finish_reason)

    def _shown(self) -> list[ShownToken]:
        """Return the tokens whose text has been released since the last call, all of them at the end."""
        if self.finish_reason is not None and self._text.stop_string is None:
            shown, self._unshown = self._unshown, []
            return shown
        end = next(
            (i for i, token in enumerate(self._unshown) if token.text_offset >= self._text.num_released),
            len(self._unshown),
        )
        shown, self._unshown = self._unshown[:end], self._unshown[end:]
        return shown


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a whole HTTP request; a prompt counts once however many choices it has."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


def usage(generation: Generation, choices: list[Choice]) -> Usage:
    """Return the counts so far."""
    return Usage(
        prompt_tokens=sum(len(prompt) for prompt in generation.prompts),
        output_tokens=sum(choice.num_output_tokens for choice in choices),
        cached_tokens=sum(choice.num_cached_tokens for choice in choices[:: generation.n]),
    )


@dataclass(slots=True)
class WholeChoice:
    """A choice's deltas put together, for a response in one piece."""

    index: int
    parts: list[str] = field(default_factory=list)
    tokens: list[ShownToken] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.parts.append(delta.text)
        self.tokens += delta.tokens
        self.finish_reason = delta.finish_reason or self.finish_reason

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.parts)
