"""A plan whose result is not known yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from stoker_runtime.core.budgets import Allowance
from stoker_runtime.core.request import Request
from stoker_runtime.core.step import SampledToken, ScheduledRequest, ScoredPrompt, StepResult


@dataclass(slots=True)
class Flight:
    """What a step computes, and for whom.

    Args:
        items: its requests and their shares of it.
        is_void: whether its result means nothing, because it was made on a step that then failed.
        num_decodes: requests in it that decode; 0 where its time says nothing of the pace.
        num_prompt_tokens: as they count, see Budgets.context_price.
    """

    items: list[tuple[Request, ScheduledRequest]] = field(default_factory=list)
    is_void: bool = False
    num_decodes: int = 0
    num_prompt_tokens: int = 0

    def time(self, num_decodes: int, allowance: Allowance) -> None:
        """Let its duration count for the pace, unless it takes what other steps of its size do not take.

        Args:
            num_decodes: its first items.
            allowance: what its prompts were given.
        """
        items = [item for _, item in self.items]
        if any(item.num_draft_tokens or item.num_scored for item in items):
            return
        self.num_decodes = num_decodes
        self.num_prompt_tokens = sum(
            allowance.cost(len(item.token_ids), item.num_computed_tokens) for item in items[num_decodes:]
        )

    def parts(
        self, result: StepResult
    ) -> Iterator[tuple[Request, ScheduledRequest, list[SampledToken], ScoredPrompt | None]]:
        """Yield each request that sampled or was scored, its share of the step, and what it got.

        Raises:
            AssertionError: the result does not have what the plan asked for.
        """
        sampled, first, scores = result.sampled, 0, iter(result.scored)
        for request, item in self.items:
            scored = None
            if item.num_scored:
                scored = next(scores, None)
                assert scored is not None, "the result lacks a prompt's scores"
                assert scored.request_id == item.request_id, "the result's order differs from the plan's"
            if item.samples:
                tokens = sampled[first : first + 1 + item.num_draft_tokens]
                first += len(tokens)
                assert len(tokens) == item.num_samples, "the result has fewer tokens than the plan asked for"
                yield request, item, tokens, scored
            elif scored is not None:
                yield request, item, [], scored
        assert first == len(sampled), "the result has more tokens than the plan asked for"
        assert next(scores, None) is None, "the result has more scores than the plan asked for"

    def num_scored(self, request: Request) -> int:
        """Return how many of a request's prompt tokens it scores."""
        return 0 if self.is_void else sum(item.num_scored for owner, item in self.items if owner is request)
