"""One generation as the scheduler sees it: token ids, how many are computed, and which blocks hold them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from enum import Enum

from stoker_runtime.messages import AddRequest, SamplingParams


class RequestStatus(Enum):
    """Where a request is. A preempted request is waiting again."""

    WAITING = "waiting"  # holds no blocks
    RUNNING = "running"  # holds blocks; part of each step
    FINISHED = "finished"


class Request:
    """A request's tokens and progress. Only the scheduler changes it.

    Args:
        command: what the server asked for.
        seed: fixes this request's random numbers; the command's own seed when it has one.
        eos_token_ids: the model's end-of-sequence tokens.
    """

    __slots__ = (
        "allowed_token_ids",
        "block_hashes",
        "block_ids",
        "cache_salt",
        "end_token_ids",
        "is_long",
        "looks_back",
        "masked_token_ids",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_overtakes",
        "num_pending_tokens",
        "num_preemptions",
        "num_published_blocks",
        "num_scorable_tokens",
        "num_scored_tokens",
        "order",
        "output_token_ids",
        "pending_index",
        "priority",
        "prompt_token_ids",
        "request_id",
        "sampling",
        "seed",
        "status",
        "token_ids",
    )

    def __init__(self, command: AddRequest, seed: int, eos_token_ids: Iterable[int] = ()) -> None:
        self.request_id: str = command.request_id
        self.sampling: SamplingParams = command.sampling
        self.looks_back = command.sampling.looks_back
        self.seed = seed
        self.cache_salt: str = command.cache_salt
        self.prompt_token_ids: list[int] = command.prompt_token_ids
        self.output_token_ids: list[int] = []
        self.token_ids: list[int] = list(command.prompt_token_ids)  # prompt and output
        self.priority: int = command.priority
        self.order = (command.priority, 0)  # who goes first; the scheduler puts the arrival's number into it
        self.is_long = False  # whether it misses, or missed when it started, as much as a long prompt
        self.num_overtakes = 0  # short prompts that came later and started first, while it waits
        self.status = RequestStatus.WAITING
        self.num_computed_tokens = 0  # those of steps in flight count
        self.num_pending_tokens = 0  # that steps in flight sample: they exist, but nobody knows them yet
        self.pending_index = 0  # of the last of them, among all that its step samples
        self.num_preemptions = 0  # times that it had to give its blocks back
        self.num_published_blocks = 0  # leading blocks that were made findable, or were found
        self.num_cached_tokens: int | None = None  # None until it is first admitted
        is_scored = command.sampling.prompt_logprobs is not None
        self.num_scorable_tokens = max(0, len(self.prompt_token_ids) - 1) if is_scored else 0
        self.num_scored_tokens = 0  # of those, prompt tokens from the second on, that results have brought
        self.block_ids: list[int] = []
        self.block_hashes: list[bytes] = []  # of the leading full blocks, as far as they were needed
        eos = () if command.sampling.ignore_eos else tuple(eos_token_ids)
        self.end_token_ids = frozenset((*eos, *command.sampling.stop_token_ids))
        allowed = command.sampling.allowed_token_ids
        self.allowed_token_ids = None if allowed is None else array("q", sorted(set(allowed)))
        self.masked_token_ids: tuple[int, ...] = tuple(sorted(self.end_token_ids))

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known so far."""
        return len(self.token_ids)

    @property
    def num_expected_tokens(self) -> int:
        """Prompt and output tokens, pending ones included."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_missing_tokens(self) -> int:
        """Tokens still to compute; 1 while decoding, more during prefill."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens

    def is_ending(self, max_model_len: int) -> bool:
        """Tell whether it ends with its pending token, whatever that is."""
        num_pending = self.num_pending_tokens
        return num_pending > 0 and (
            len(self.output_token_ids) + num_pending >= self.sampling.max_tokens
            or len(self.token_ids) + num_pending >= max_model_len
        )

    def scored(self, start: int, end: int) -> range:
        """Return the positions from `start` to before `end` whose logits score the prompt token behind them.

        Those whose scores a result has brought already, before a preemption, are not among them.
        """
        first = max(start, self.num_scored_tokens)
        return range(first, max(first, min(end, self.num_scorable_tokens)))

    def num_tokens_with(self, num_rows: int) -> int:
        """Return how many of its missing tokens it may compute if no more than so many rows are scored."""
        rows = self.scored(self.num_computed_tokens, self.num_scorable_tokens)
        if len(rows) <= num_rows:
            return self.num_missing_tokens
        return rows.start + num_rows - self.num_computed_tokens

    def append(self, token_id: int) -> None:
        """Add an output token."""
        self.token_ids.append(token_id)
        self.output_token_ids.append(token_id)

    def masked_now(self) -> tuple[int, ...]:
        """Return the tokens that the next sample must not be: what would end it before min_tokens."""
        min_tokens = self.sampling.min_tokens
        if not min_tokens or len(self.output_token_ids) + self.num_pending_tokens >= min_tokens:
            return ()
        return self.masked_token_ids
