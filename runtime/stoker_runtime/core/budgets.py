"""What a step may hold, and how much of it prompts may take. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from stoker_runtime.core.pace import PrefillPace

_LOGIT_BYTES = 4
_TOP_BYTES = 128  # of a likely token with its log-probability, as Python has them


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Limits of one engine's steps, in tokens unless said otherwise.

    Args:
        max_num_seqs: requests that may run at once.
        max_num_batched_tokens: a step's tokens; at least max_num_seqs.
        max_model_len: of one request, prompt and output.
        prefill_beside_decodes: prompt tokens in a step in which others decode, at least 1. Each of them
            lengthens the gap between two tokens of everybody who decodes.
        stretch: what prompts may make of the time of a step in which few_requests or fewer decode, in
            percent of what it takes without; prefill_beside_decodes then counts only until such steps have
            been timed (see core.pace). 0: it always counts.
        prefill_per_request: prompt tokens for each request that decodes or waits, where that is more and
            there are more than few_requests: many decodes take long anyway, and many who wait should join
            them rather than wait in peace.
        context_price: in a step in which others decode, a prompt token counts once more for each so many
            tokens before it, because it attends to them; 0: it counts once.
        long_prompt_tokens: a prompt that misses more than this is long: it shares a step's prefill with the
            short ones.
        few_requests: so many are served for short gaps rather than for throughput.
        draft_rows: up to so many of a step's tokens, guesses are added (see core.drafts); at most
            max_num_batched_tokens; 0: none are.
        scoring_bytes: about what the logits of a step's scored prompt tokens may take, and the
            log-probabilities that are made of them; one token is scored in any case.
        vocab_size: how many logits a token has.

    Raises:
        ValueError: a budget that could leave a request without a token for ever.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    prefill_beside_decodes: int
    prefill_per_request: int
    context_price: int
    long_prompt_tokens: int
    few_requests: int = 0
    stretch: int = 0
    draft_rows: int = 0
    scoring_bytes: int = 64 * 2**20
    vocab_size: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.max_num_seqs <= self.max_num_batched_tokens:
            raise ValueError(
                f"need 1 <= max_num_seqs {self.max_num_seqs} <= budget {self.max_num_batched_tokens}"
            )
        if self.draft_rows > self.max_num_batched_tokens:
            raise ValueError(f"draft_rows {self.draft_rows} are more than a step may compute")
        if self.prefill_beside_decodes < 1:
            raise ValueError("prefill_beside_decodes must be at least 1, or a decode could stop all prompts")
        if self.scoring_bytes < 1:
            raise ValueError("scoring_bytes must be at least 1, or no prompt would ever be scored")

    def pace(self) -> PrefillPace | None:
        """Return what follows one engine's steps, where that is asked for."""
        if not self.stretch:
            return None
        return PrefillPace(self.prefill_beside_decodes, self.stretch, self.few_requests)

    def prefill(
        self, num_decodes: int, num_waiting: int, num_draft_tokens: int = 0, beside: int | None = None
    ) -> Allowance:
        """Return what a step may spend on prompts.

        Args:
            num_decodes: requests that decode in it.
            num_waiting: requests that have not started; only as many count as may run at once.
            num_draft_tokens: that it computes besides.
            beside: what counts in place of prefill_beside_decodes.
        """
        left = self.max_num_batched_tokens - num_decodes - num_draft_tokens
        if num_decodes == 0:
            return Allowance(left, 0)
        num_requests = min(num_decodes + num_waiting, self.max_num_seqs)
        tokens = self.prefill_beside_decodes if beside is None else beside
        if num_requests > self.few_requests:
            tokens = max(tokens, self.prefill_per_request * num_requests)
        return Allowance(min(left, tokens), self.context_price)

    def scoring_cost(self, num_top: int) -> int:
        """Return the bytes that count for a prompt token that is scored with so many likeliest tokens."""
        return _LOGIT_BYTES * self.vocab_size + _TOP_BYTES * num_top


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a step may spend on prompts: tokens, each counted by `context_price`; see Budgets."""

    tokens: int
    context_price: int

    def cost(self, count: int, num_before: int) -> int:
        """Return what so many tokens count that have `num_before` tokens before them."""
        if not self.context_price:
            return count
        return count + -(-count * num_before // self.context_price)

    def affordable(self, tokens: int, num_before: int) -> int:
        """Return how many tokens with `num_before` before them count no more than `tokens`, at least 1."""
        if not self.context_price:
            return tokens
        return max(1, tokens * self.context_price // (self.context_price + num_before))
