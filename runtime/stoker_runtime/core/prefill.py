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

_Shares = Generator[tuple[Request, int], None, int]


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
        left = allowance.tokens
        while left:
            priorities = [priority for priority, _ in begun]
            if may_start and self._waiting.priority is not None:
                priorities.append(self._waiting.priority)
            if not priorities:
                return
            priority = min(priorities)
            begun_short, begun_long = begun.pop((priority, False), None), begun.pop((priority, True), None)
            level = _Level(priority, may_start, begun_short, begun_long)
            left = yield from self._level(level, allowance, left)
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

    def _level(self, level: _Level, allowance: Allowance, left: int) -> _Shares:
        """Yield the shares of one priority; return what it leaves of what more urgent ones left."""
        kept = self._keep_for_long(level, allowance, left)
        left -= kept
        while left and (short := level.short or self._start_short(level)):
            level.short = None
            left = yield from _share(short, allowance, left)
        left += kept
        while left and (long := level.long or self._start_long(level)):
            level.long = None
            left = yield from _share(long, allowance, left)
        return left

    def _keep_for_long(self, level: _Level, allowance: Allowance, left: int) -> int:
        """Return what the short lane must leave, after a long prompt has started if it is the turn of one."""
        long = level.long or (self._next_long(level.priority) if level.may_start else None)
        if long is None:
            return 0
        waiting = self._waiting.first(level.priority, is_long=False) if level.may_start else None
        rival = level.short or waiting
        is_older = rival is None or long.order < rival.order
        kept = max(left // _LONG_SHARE, int(is_older))
        if level.long is None:
            level.long = self._start(long) if kept else None
        if level.long is None:
            return 0
        return min(kept, allowance.cost(long.num_missing_tokens, long.num_computed_tokens))

    def _next_long(self, priority: int) -> Request | None:
        """Return the long prompt that no waiting short one is older than."""
        short, long = (self._waiting.first(priority, is_long=is_long) for is_long in (False, True))
        return None if long and short and short.order < long.order else long

    def _start_long(self, level: _Level) -> Request | None:
        long = self._next_long(level.priority) if level.may_start else None
        return self._start(long) if long else None

    def _start_short(self, level: _Level) -> Request | None:
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
        started = self._start(request)
        if overtaken and started:
            overtaken.num_overtakes += 1
        return started

    def _start(self, request: Request) -> Request | None:
        if not self._running.start(request):
            return None
        self._waiting.remove(request)
        request.num_overtakes = 0
        return request

    def _is_long(self, request: Request) -> bool:
        return self._running.num_unknown_tokens(request) > self._long_prompt_tokens


def _share(request: Request, allowance: Allowance, left: int) -> _Shares:
    """Yield what a request gets of `left` tokens of the allowance, at least 1; return what then is left.

    Nothing is left by a prompt that is still in the middle, be it too little for its next token.
    """
    missing, num_before = request.num_missing_tokens, request.num_computed_tokens
    count = min(missing, allowance.affordable(left, num_before))
    yield request, count
    return max(0, left - allowance.cost(count, num_before)) if count == missing else 0
