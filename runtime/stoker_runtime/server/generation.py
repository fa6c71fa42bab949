"""One HTTP request's work for the engine, whatever protocol it came in, and what comes back. Pure.

`Generation` is prompts times n choices; `Choice` turns one choice's engine outputs into `Delta`s of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from stoker_runtime.errors import RequestError
from stoker_runtime.messages import AddRequest, FinishReason, RequestOutput, SamplingParams, TokenLogprob
from stoker_runtime.server.detokenize import Detokenizer, TokenBytes
from stoker_runtime.server.stop_strings import StopStrings


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What to generate. Choice number i belongs to prompt i // num_candidates.

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
        echo_is_prompt: that text is the whole prompt, whose tokens then lead the answer's log-probabilities.
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
    echo_is_prompt: bool = True
    shows_prompt_logprobs: bool = False
    returns_token_ids: bool = False
    drops_output: bool = False

    @property
    def echoes_tokens(self) -> bool:
        """Whether the log-probabilities of the answer begin with those of the prompt."""
        return self.echo is not None and self.echo_is_prompt and self.sampling.logprobs is not None

    @property
    def num_candidates(self) -> int:
        """Choices that are generated of each prompt."""
        return max(self.n, self.best_of)

    @property
    def num_choices(self) -> int:
        """Engine requests this becomes."""
        return len(self.prompts) * self.num_candidates


def add_requests(generation: Generation, name: str, max_model_len: int, arrival_s: float) -> list[AddRequest]:
    """Return one engine request per choice.

    Args:
        generation: what to generate; its prompts are shorter than max_model_len.
        name: the engine requests are called name-0, name-1, ...
        max_model_len: prompt and output tokens together stay within it.
        arrival_s: time.monotonic() when the HTTP request came.
    """
    choices = [
        (prompt, number) for prompt in generation.prompts for number in range(generation.num_candidates)
    ]
    return [
        AddRequest(
            request_id=f"{name}-{index}",
            prompt_token_ids=prompt,
            sampling=_choice_sampling(generation, number, max_model_len - len(prompt)),
            cache_salt=generation.cache_salt,
            priority=generation.priority,
            arrival_s=arrival_s,
        )
        for index, (prompt, number) in enumerate(choices)
    ]


def _choice_sampling(generation: Generation, number: int, room: int) -> SamplingParams:
    """Keep a choice within the model's length, and give each choice of one prompt a seed of its own.

    A prompt is scored once, with its first choice: the others may take it from the prefix cache.
    """
    sampling = generation.sampling
    seed = None if sampling.seed is None else (sampling.seed + number) % 2**63
    logprobs = sampling.logprobs
    if logprobs is None and generation.best_of > generation.n:
        logprobs = 0
    max_tokens = min(sampling.max_tokens, room)
    return msgspec.structs.replace(
        sampling,
        max_tokens=max_tokens,
        min_tokens=min(sampling.min_tokens, max_tokens),
        seed=seed,
        logprobs=logprobs,
        prompt_logprobs=sampling.prompt_logprobs if number == 0 else None,
    )


def best_choices(mean_logprobs: Sequence[float], n: int, num_candidates: int) -> list[int]:
    """Return which choices are answered: of each prompt the n likeliest, these first.

    Args:
        mean_logprobs: by choice, of its tokens; num_candidates for each prompt.
        n: choices of each prompt that are answered.
        num_candidates: choices of each prompt there are; when no more than n, all are answered as they are.
    """
    if num_candidates <= n:
        return list(range(len(mean_logprobs)))
    chosen = []
    for first in range(0, len(mean_logprobs), num_candidates):
        candidates = range(first, first + num_candidates)
        chosen += sorted(candidates, key=lambda index: -mean_logprobs[index])[:n]
    return chosen


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token of the text.

    Args:
        token_id: which.
        text_offset: characters of text before it, those of a prompt that leads the answer included.
        logprob: its log-probabilities; None for the first token of a prompt, which follows nothing.
    """

    token_id: int
    text_offset: int
    logprob: TokenLogprob | None


@dataclass(frozen=True, slots=True)
class Delta:
    """What a step added to a choice."""

    index: int
    text: str
    tokens: Sequence[ShownToken] = ()  # only when log-probabilities were asked for
    finish_reason: str | None = None  # "stop" or "length"
    token_ids: Sequence[
        int
    ] = ()  # only when they were asked for; they do not wait for text that is held back
    prompt_logprobs: Sequence[TokenLogprob] = ()  # the next of the prompt's, with its first choice
    num_output_tokens: int = field(default=0, compare=False)  # of the choice so far


class Choice:
    """One choice on its way: engine outputs in, text out.

    The end-of-sequence or stop token that ends a choice is counted as an output token and gives no text,
    unless the request includes stop strings in its output. Where the prompt leads the answer, each token that
    is counted has its log-probabilities, so that who scores a prompt knows how many follow it.

    Args:
        index: its number.
        generation: what it is a choice of.
        token_bytes: the model's vocabulary.
        stops: the generation's stop strings, where choices share them.
    """

    def __init__(
        self, index: int, generation: Generation, token_bytes: TokenBytes, stops: StopStrings | None = None
    ) -> None:
        echo = generation.echo
        self.index = index
        self.finish_reason: str | None = None
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self._generation = generation
        self._sum_logprobs = 0.0
        self._wants_logprobs = generation.sampling.logprobs is not None
        self._unshown: list[ShownToken] = []
        self._start = 0 if echo is None else len(echo[index // generation.num_candidates])
        self._text = Detokenizer(
            token_bytes,
            stop=generation.stop if stops is None else stops,
            include_stop=generation.include_stop,
            skip_special_tokens=generation.skip_special_tokens,
            min_tokens=generation.sampling.min_tokens,
        )

    @property
    def mean_logprob(self) -> float:
        """Mean of the log-probabilities of its tokens, when the engine told them."""
        return self._sum_logprobs / max(1, self.num_output_tokens)

    def take(self, output: RequestOutput) -> Delta:
        """Take one engine output. After it, a finish_reason without one in the output means: abort the rest.

        Raises:
            RequestError: 500; the engine could not answer this request alone. 503; it gave the request up.
        """
        _check(output)
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        if self._generation.drops_output:
            if output.token_ids or output.finish_reason is not None:
                self.finish_reason = "length"
            return Delta(self.index, "", finish_reason=self.finish_reason)
        is_silent_end = output.stop_token_id is not None and not self._generation.include_stop
        num_before = len(self._text.token_starts)
        text = self._text.push(output.token_ids[:-1] if is_silent_end else output.token_ids)
        starts = self._text.token_starts[num_before:]
        if self._text.stop_string is None and output.finish_reason is not None:
            text += self._text.finish()
            self.finish_reason = output.finish_reason.value
        if self._text.stop_string is not None:
            self.finish_reason = "stop"
        elif is_silent_end and self._shows_all:
            starts.append(self._text.num_decoded)
        # Tokens behind a stop string are no part of the answer.
        num_tokens = len(starts) if self._text.stop_string else len(output.token_ids)
        self.num_output_tokens += num_tokens
        if output.logprobs:
            self._sum_logprobs += sum(logprob.logprob for logprob in output.logprobs[:num_tokens])
        if self._wants_logprobs:
            # Fewer starts than tokens: a token without text ended it, or a stop string cut the rest off.
            self._unshown += [
                ShownToken(logprob.token_id, self._start + start, logprob)
                for logprob, start in zip(output.logprobs, starts, strict=False)
            ]
        token_ids = output.token_ids[:num_tokens] if self._generation.returns_token_ids else ()
        return Delta(
            self.index,
            text,
            self._shown(),
            self.finish_reason,
            token_ids,
            num_output_tokens=self.num_output_tokens,
        )

    @property
    def _shows_all(self) -> bool:
        return self._generation.echoes_tokens

    def _shown(self) -> Sequence[ShownToken]:
        """Return the tokens whose text has been released since the last call, all of them at the end."""
        if not self._unshown:
            return ()
        if self.finish_reason is not None and (self._text.stop_string is None or self._shows_all):
            shown, self._unshown = self._unshown, []
            return shown
        num_released = self._start + self._text.num_released
        end = next(
            (i for i, token in enumerate(self._unshown) if token.text_offset >= num_released),
            len(self._unshown),
        )
        shown, self._unshown = self._unshown[:end], self._unshown[end:]
        return shown


def _check(output: RequestOutput) -> None:
    """Refuse an output that is none.

    Raises:
        RequestError: see Choice.take.
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


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a whole HTTP request; a prompt counts once however many choices it has."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


def usage(generation: Generation, choices: Sequence[Choice]) -> Usage:
    """Return the counts so far; what was generated counts, also where it was not the best."""
    return Usage(
        prompt_tokens=sum(len(prompt) for prompt in generation.prompts),
        output_tokens=sum(choice.num_output_tokens for choice in choices),
        cached_tokens=sum(choice.num_cached_tokens for choice in choices[:: generation.num_candidates]),
    )
