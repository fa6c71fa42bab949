"""Which prompts a step computes, and how much of each. Pure.

Prompts that miss more than `long_prompt_tokens` are long, the rest is short. Each kind has a lane in which
the older prompt is computed to its end before the next one starts, so at most two prompts of one priority are
in the middle at a time, and prompts with a common start are not computed side by side.

A step's prefill goes to the short lane first, but for a quarter that is kept for the long lane. What one lane
does not need the other one takes. So

- a short prompt waits for the short ones before it, at no less than three quarters of the prefill, however
  many long ones are there;
- a long prompt whose turn has come moves by at least a quarter, however many short ones come.

Slots and blocks go by order: once `max_num_seqs` short prompts have overtaken a long one and its turn has
come, nobody starts before it, even if there is no room for it yet. A more urgent priority takes what it needs
first; the next one gets the rest, and starts nobody while a more urgent request waits.

Prompts whose tokens are scored also share the memory that this takes, in the same way: short ones first, a
quarter kept for long ones. A prompt that it holds up leaves its tokens to other lanes.

The pieces are known. Chunks of prompts beside decodes are Sarathi-Serve's (arXiv 2403.02310). vLLM lets short
prompts pass long ones by long_prefill_token_threshold and max_long_partial_prefills; here each side has a
guaranteed share besides, and what is unused passes on, as in fair queueing (Demers, Keshav, Shenker 1989)
with two queues. Chunks that shrink as the context grows are Medha's (arXiv 2409.17264).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from stoker_runtime.core.budgets import Allowance, Budgets
from stoker_runtime.core.queue import WaitingQueue
from stoker_runtime.core.request import Request
from stoker_runtime.core.running import Running

_LONG_SHARE = 4  # one in so many tokens is kept for long prompts while short ones are there

_Shares = Generator[tuple[Request, int], None, None]
_Share = Generator[tuple[Request, int], None, bool]


@dataclass(slots=True)
class _Left:
    """What is left of a step for prompts: tokens, as they count, and bytes for scores."""

    tokens: int
    scoring_bytes: int

    def take(self, tokens: int, scoring_bytes: int) -> None:
        """Spend some of it; more than there is leaves nothing."""
        self.tokens = max(0, self.tokens - tokens)
        self.scoring_bytes = max(0, self.scoring_bytes - scoring_bytes)

    def part(self, divisor: int, least: int) -> _Left:
        """Return a share of both, and so much at least where there is any; it is still in here."""
        tokens, scoring_bytes = self.tokens // divisor, self.scoring_bytes // divisor
        return _Left(min(self.tokens, max(tokens, least)), min(self.scoring_bytes, max(scoring_bytes, least)))

    def limit(self, tokens: int, scoring_bytes: int) -> None:
        """Keep no more than so much."""
        self.tokens = min(self.tokens, tokens)
        self.scoring_bytes = min(self.scoring_bytes, scoring_bytes)

    def add(self, other: _Left) -> None:
        """Put back what was kept."""
        self.tokens += other.tokens
        self.scoring_bytes += other.scoring_bytes


@dataclass(slots=True)
class _Level:
    """One priority while a step is planned, and its prompts in the middle that have no share yet."""

    priority: int
    may_start: bool
    short: Request | None
    long: Request | None


class Prefills:
    """Starts waiting requests and hands out prompt tokens.

    Args:
        budgets: what is long, and how often a long prompt is overtaken at most.
        running: where requests go that start.
        waiting: where they come from.
    """

    def __init__(self, budgets: Budgets, running: Running, waiting: WaitingQueue) -> None:
        self._budgets = budgets
        self._long_prompt_tokens = budgets.long_prompt_tokens
        self._max_overtakes = budgets.max_num_seqs
        self._running = running
        self._waiting = waiting

    def queue(self, request: Request) -> None:
        """Let a request wait in the lane that what it misses puts it in."""
        request.is_long = self._is_long(request)
        self._waiting.add(request)

    def shares(self, allowance: Allowance, *, may_start: bool) -> Iterator[tuple[Request, int]]:
        """Yield requests and how many of their tokens the step computes, at least 1 each.

        Whoever takes them describes each share before asking for the next: a request that starts later in the
        step may share the blocks that an earlier one fills.

        Args:
            allowance: what the step may spend on them.
            may_start: whether waiting requests may start.
        """
        begun = {(r.priority, r.is_long): r for r in self._running if r.num_missing_tokens > 1}
        left = _Left(allowance.tokens, self._budgets.scoring_bytes)
        while left.tokens:
            priorities = [priority for priority, _ in begun]
            if may_start and self._waiting.priority is not None:
                priorities.append(self._waiting.priority)
            if not priorities:
                return
            priority = min(priorities)
            begun_short, begun_long = begun.pop((priority, False), None), begun.pop((priority, True), None)
            level = _Level(priority, may_start, begun_short, begun_long)
            yield from self._level(level, allowance, left)
            may_start = may_start and self._waiting.priority != priority

    def check(self) -> None:
        """Assert that each lane of each priority has at most one prompt in the middle.

        Raises:
            AssertionError: the first invariant that does not hold.
        """
        begun = [(r.priority, r.is_long) for r in self._running if r.num_missing_tokens > 1]
        assert len(begun) == len(set(begun)), "two prompts of one lane are in the middle"
        self._waiting.check()
        for request in self._waiting:
            assert request.is_long or not request.num_overtakes, "a short prompt was overtaken"

    def _level(self, level: _Level, allowance: Allowance, left: _Left) -> _Shares:
        """Yield the shares of one priority, and take them from what more urgent ones left."""
        kept = self._keep_for_long(level, allowance, left)
        left.take(kept.tokens, kept.scoring_bytes)
        goes_on = True
        while goes_on and left.tokens and (short := level.short or self._start_short(level, left)):
            level.short = None
            goes_on = yield from self._share(short, allowance, left)
        left.add(kept)
        goes_on = True
        while goes_on and left.tokens and (long := level.long or self._start_long(level, left)):
            level.long = None
            goes_on = yield from self._share(long, allowance, left)

    def _keep_for_long(self, level: _Level, allowance: Allowance, left: _Left) -> _Left:
        """Return what the short lane must leave, after a long prompt has started if it is the turn of one."""
        nothing = _Left(0, 0)
        long = level.long or (self._next_long(level.priority) if level.may_start else None)
        if long is None:
            return nothing
        waiting = self._waiting.first(level.priority, is_long=False) if level.may_start else None
        rival = level.short or waiting
        is_older = rival is None or long.order < rival.order
        kept = left.part(_LONG_SHARE, least=int(is_older))
        if level.long is None:
            level.long = self._start(long, kept) if kept.tokens else None
        if level.long is None:
            return nothing
        tokens = allowance.cost(long.num_missing_tokens, long.num_computed_tokens)
        kept.limit(tokens, self._scoring_bytes(long, long.num_missing_tokens))
        return kept

    def _next_long(self, priority: int) -> Request | None:
        """Return the long prompt that no waiting short one is older than."""
        short, long = (self._waiting.first(priority, is_long=is_long) for is_long in (False, True))
        return None if long and short and short.order < long.order else long

    def _start_long(self, level: _Level, left: _Left) -> Request | None:
        long = self._next_long(level.priority) if level.may_start else None
        return self._start(long, left) if long else None

    def _start_short(self, level: _Level, left: _Left) -> Request | None:
        """Start the next short prompt, unless it has to let a long one start first."""
        if not level.may_start:
            return None
        while (request := self._waiting.first(level.priority, is_long=False)) and self._is_long(request):
            # The prefix that made it short is gone.
            self._waiting.remove(request)
            request.is_long = True
            self._waiting.add(request)
        if request is None:
            return None
        overtaken = self._next_long(level.priority)
        # While a long prompt is in the middle, the turn of the next one has not come.
        if overtaken and level.long is None and overtaken.num_overtakes >= self._max_overtakes:
            return None
        started = self._start(request, left)
        if overtaken and started:
            overtaken.num_overtakes += 1
        return started

    def _start(self, request: Request, left: _Left) -> Request | None:
        """Start a request unless there is no room for it, or nothing left to score its first tokens with."""
        is_scored = request.num_scored_tokens < request.num_scorable_tokens
        if (is_scored and not left.scoring_bytes) or not self._running.start(request):
            return None
        self._waiting.remove(request)
        request.num_overtakes = 0
        return request

    def _is_long(self, request: Request) -> bool:
        return self._running.num_unknown_tokens(request) > self._long_prompt_tokens

    def _share(self, request: Request, allowance: Allowance, left: _Left) -> _Share:
        """Yield what a request gets of what is left, at least 1 token, unless its scores are too much.

        No token is left by a prompt that is still in the middle, be it too few for its next one; what a
        prompt leaves that scores hold up is for others.

        Returns:
            Whether the prompt is done, so that its lane may go on.
        """
        missing, num_before = request.num_missing_tokens, request.num_computed_tokens
        affordable = min(missing, allowance.affordable(left.tokens, num_before))
        count = min(affordable, request.num_tokens_with(self._num_rows(request, left)))
        if not count:
            return False
        scoring_bytes = self._scoring_bytes(request, count)
        yield request, count
        is_held_up = count == affordable < missing
        left.take(left.tokens if is_held_up else allowance.cost(count, num_before), scoring_bytes)
        return count == missing

    def _num_rows(self, request: Request, left: _Left) -> int:
        """Return how many of a request's tokens may be scored; while anything is left, one at least."""
        if not request.num_scorable_tokens or not left.scoring_bytes:
            return 0
        return max(1, left.scoring_bytes // self._budgets.scoring_cost(request.sampling.prompt_logprobs or 0))

    def _scoring_bytes(self, request: Request, count: int) -> int:
        """Return what counts for the scores of a request's next tokens."""
        if not request.num_scorable_tokens:
            return 0
        start = request.num_computed_tokens
        num_rows = len(request.scored(start, start + count))
        return num_rows * self._budgets.scoring_cost(request.sampling.prompt_logprobs or 0)
