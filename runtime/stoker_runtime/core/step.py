"""The contract between the scheduler and the model runner: one step asked for, one step answered."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import msgspec
from msgspec.structs import replace

from stoker_runtime.messages import EngineReady, SamplingParams, TokenLogprob


# Structs rather than dataclasses where a step makes hundreds: a frozen dataclass takes microseconds to make.
class ScheduledRequest(msgspec.Struct, frozen=True):
    """One request's share of a step.

    The runner computes `token_ids`, whose positions are `num_computed_tokens ..`, writes their KV into the
    slots that `block_ids` gives for those positions, and, if `samples` is set, picks the token that follows
    the last known one. The last tokens may be a draft, guesses that nobody has sampled yet: then it also
    picks what follows each of them. Where the prompt is scored, it tells besides how likely the prompt's next
    token was behind some of the tokens, none of which is sampled.

    A plan that is made before the result of the plan before is known holds placeholders for the tokens which
    that one samples, see `sampled_before`.
    """

    request_id: str
    token_ids: list[int]  # >= 1 tokens to compute, or the placeholder of one
    num_computed_tokens: int  # tokens before them, whose KV is already stored
    block_ids: list[int]  # the request's whole block table; covers num_computed_tokens + len(token_ids)
    samples: bool  # True when this step computes the request's last known token
    sampling: SamplingParams
    seed: int  # the request's seed; with the position it fixes the random number
    prompt_token_ids: list[int]  # for repetition_penalty; shared, never changed
    output_token_ids: list[int]  # so far, for penalties and min_tokens; shared, never changed by the runner
    masked_token_ids: tuple[int, ...] = ()  # never picked this step: eos and stop ids before min_tokens
    allowed_token_ids: array[int] | None = None  # 64-bit; only these are picked; None: all
    num_draft_tokens: int = 0  # at the end of token_ids; 0 unless `samples`
    first_scored: int = 0  # among token_ids
    num_scored: int = 0  # tokens from there on whose logits score the prompt token behind them

    @property
    def num_samples(self) -> int:
        """Tokens that the runner picks for it."""
        return 1 + self.num_draft_tokens if self.samples else 0

    @property
    def scored_token_ids(self) -> list[int]:
        """The prompt tokens that are scored, each behind the token whose logits score it."""
        first = self.num_computed_tokens + self.first_scored + 1
        return self.prompt_token_ids[first : first + self.num_scored]

    @property
    def draft_token_ids(self) -> list[int]:
        """The guesses."""
        return self.token_ids[len(self.token_ids) - self.num_draft_tokens :]

    def positions(self) -> Iterator[ScheduledRequest]:
        """Yield the request as a sampler sees it at each position that it samples.

        Behind a token of the draft that is the request as if the draft up to there were output.
        """
        if not self.num_draft_tokens:
            if self.samples:
                yield self
            return
        draft, num_known = self.draft_token_ids, len(self.token_ids) - self.num_draft_tokens
        for index in range(len(draft) + 1):
            output = [*self.output_token_ids, *draft[:index]]
            yield replace(
                self,
                token_ids=self.token_ids[: num_known + index],
                num_draft_tokens=0,
                num_scored=0,
                output_token_ids=output,
                masked_token_ids=self.masked_token_ids if len(output) < self.sampling.min_tokens else (),
            )

    def resolved(self, sampled: Sequence[SampledToken]) -> ScheduledRequest:
        """Return the request without placeholders, see StepPlan.resolved."""
        if self.token_ids[0] >= 0:  # a pending token is a request's only one
            return self
        index = -1 - self.token_ids[0]
        token_id = sampled[index].token_id if index < len(sampled) else 0
        return replace(self, token_ids=[max(0, token_id)])


def sampled_before(index: int) -> int:
    """Return the placeholder for the token that the plan before samples at a place among its samples."""
    return -1 - index


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes: decodes and prefill chunks side by side, no phases.

    In each layer the runner stores the KV of every token of the plan before it attends: a request may share a
    block that another request, earlier in the plan, fills in this very step.
    """

    requests: list[ScheduledRequest]

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step, never above the token budget."""
        return sum(len(request.token_ids) for request in self.requests)

    def positions(self) -> list[ScheduledRequest]:
        """Return every position that is sampled, see ScheduledRequest.positions, in plan order."""
        return [position for request in self.requests for position in request.positions()]

    @property
    def scored(self) -> list[ScheduledRequest]:
        """The requests with tokens that are scored."""
        return [request for request in self.requests if request.num_scored]

    def logit_rows(self, first_rows: Iterable[int]) -> list[int]:
        """Return the rows whose logits the step needs: all that are sampled, then all that are scored.

        Args:
            first_rows: where each request's tokens begin among the rows that are computed, in plan order.
        """
        sampled: list[int] = []
        scored: list[int] = []
        for request, first in zip(self.requests, first_rows, strict=True):
            if request.samples:
                end = first + len(request.token_ids)
                sampled.extend(range(end - 1 - request.num_draft_tokens, end))
            if request.num_scored:
                begin = first + request.first_scored
                scored.extend(range(begin, begin + request.num_scored))
        return sampled + scored

    def resolved(self, before: StepResult) -> StepPlan:
        """Return the plan without placeholders.

        Args:
            before: result of the plan before. What is computed of a token that it does not have, because it
                failed, nobody asks for.
        """
        return StepPlan([request.resolved(before.sampled) for request in self.requests])


class SampledToken(msgspec.Struct, frozen=True):
    """The token a request got, or why it got none."""

    request_id: str
    token_id: int
    logprob: TokenLogprob | None = None
    error: str | None = None  # set when this request's logits were not finite; token_id is then -1


class ScoredPrompt(msgspec.Struct, frozen=True):
    """The log-probabilities of a request's next prompt tokens, or why it got none."""

    request_id: str
    logprobs: list[TokenLogprob] = []  # of ScheduledRequest.scored_token_ids
    error: str | None = None  # set when the logits of any of its rows were not finite


@dataclass(frozen=True, slots=True)
class StepResult:
    """One entry per position that the plan samples, in plan order: a request's draft adds to its own.

    Besides one per request whose prompt is scored, in plan order. There are none where the step failed.
    """

    sampled: list[SampledToken] = field(default_factory=list)
    error: str | None = None  # nothing was computed: all requests of the plan fail, and the engine goes on
    scored: list[ScoredPrompt] = field(default_factory=list)


class Runner(Protocol):
    """What the engine asks of a model. The only implementation that touches a device is model.runner."""

    def ready(self) -> EngineReady:
        """Describe what was loaded."""
        ...

    def step(self, plan: StepPlan) -> StepResult:
        """Compute one step. Any exception is fatal to the engine process; see StepResult.error for others."""
        ...


@runtime_checkable
class AsyncRunner(Runner, Protocol):
    """A Runner that takes a plan while it still computes the one before, and fills in placeholders itself."""

    def submit(self, plan: StepPlan) -> None:
        """Begin a step, after all that were submitted before it."""
        ...

    def collect(self) -> StepResult:
        """Wait for the earliest submitted step whose result was not collected; raises what `step` would."""
        ...
