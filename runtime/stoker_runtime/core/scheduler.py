"""Which tokens the next step computes. Pure: numbers in, numbers out; no torch, no clock, no I/O, no text.

One rule gives continuous batching, chunked prefill, prefix hits and preemption: each request's
`num_computed_tokens` catches up with its tokens, within one token budget per step.

Requests are ordered by priority, then by arrival.

1. Running requests that miss one token, which is all that decode, get it. The budget is at least
   max_num_seqs, so they never wait for a prefill.
2. When one of them needs a block and none is free, the last running request in order gives its blocks back
   and waits again, to be recomputed; its blocks stay findable, so the recomputation is short if nobody took
   them.
3. Part of what is left of the budget, or all of it when nobody decodes, goes to running requests in the
   middle of their prompt and, unless something was preempted, to waiting ones, while budget and blocks last.
   `prefill` says who gets how much, so that neither short nor long prompts starve each other.

A plan may be made while the one before is still computed (asynchronous scheduling, as vLLM calls it). Then
each request that samples in the step in flight has a pending token, which counts like a known one: its
position, its block and whether it is the last allowed are known, only its value is not. What depends on the
value waits, see `must_wait`. A request that turns out to have ended has a row in the step in flight; the
result is dropped. Its blocks may be handed out again while that step still writes to them, because steps run
in order.

The first running request in order moves in each step and is never preempted, and a waiting one is overtaken a
bounded number of times by requests behind it in order; so each request ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import zip_longest

from stoker_runtime.core.block_pool import BlockPool
from stoker_runtime.core.budgets import Budgets
from stoker_runtime.core.drafts import Drafts
from stoker_runtime.core.flight import Flight
from stoker_runtime.core.outcome import ended, finish_reason, stepped, too_long_for_pool, why_impossible
from stoker_runtime.core.prefill import Prefills
from stoker_runtime.core.queue import WaitingQueue
from stoker_runtime.core.request import Request, RequestStatus
from stoker_runtime.core.running import Running
from stoker_runtime.core.step import SampledToken, ScheduledRequest, ScoredPrompt, StepPlan, StepResult
from stoker_runtime.messages import EngineStats, FinishReason, RequestOutput


class Scheduler:
    """Plans steps and turns their results into outputs.

    Args:
        budgets: what a step and a request may hold.
        block_pool: where KV lives; used by this scheduler only.
    """

    def __init__(self, budgets: Budgets, block_pool: BlockPool) -> None:
        self._budgets = budgets
        self._pool = block_pool
        self._capacity = block_pool.num_blocks * block_pool.block_size  # tokens
        self._requests: dict[str, Request] = {}
        self._waiting = WaitingQueue()
        self._running = Running(budgets.max_num_seqs, block_pool)
        self._prefills = Prefills(budgets, self._running, self._waiting)
        self._drafts = Drafts(budgets.draft_rows)
        self._pace = budgets.pace()
        self._in_flight: deque[Flight] = deque()  # at most two plans, the older one first
        self._flight = Flight()  # the plan that is being made
        self._num_samples = 0  # in it
        self._ended: list[RequestOutput] = []  # ends that no step result brings; go out with the next update
        self._num_arrivals = 0
        self._num_preemptions = 0
        self._num_in_step = 0
        self._num_steps = 0
        self._num_scheduled_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether another step has something to compute or to say."""
        return bool(self._requests or self._ended or self._in_flight)

    @property
    def num_in_flight(self) -> int:
        """Plans without a result."""
        return len(self._in_flight)

    @property
    def must_wait(self) -> bool:
        """Whether the next plan depends on the result of one in flight.

        It does where a draft or a penalty looks at the tokens, and where blocks are short: whoever ends with
        its pending token leaves some, so that nobody has to be preempted.
        """
        if not self._in_flight:
            return False
        if len(self._in_flight) > 1 or self._budgets.draft_rows:
            return True
        needed = 0
        for request in self._running:
            if request.num_missing_tokens != 1 or request.is_ending(self._budgets.max_model_len):
                continue
            if request.num_pending_tokens and request.looks_back:
                return True
            if self._running.needs_block(request):
                needed += 1
                if request.num_expected_tokens > self._capacity:
                    return True
        return needed > self._pool.num_free

    def add(self, request: Request) -> None:
        """Queue a request. One that can never run ends with an error output in the next update."""
        problem = why_impossible(request, self._budgets.max_model_len, self._capacity)
        if request.request_id in self._requests:
            problem = f"request id {request.request_id!r} is in use"
        if problem is not None:
            self.refuse(request.request_id, problem)
            return
        self._num_arrivals += 1
        request.order = (request.priority, self._num_arrivals)
        self._requests[request.request_id] = request
        self._prefills.queue(request)

    def refuse(self, request_id: str, error: str) -> None:
        """Answer a request that was never added with an error output in the next update."""
        self._ended.append(
            RequestOutput(request_id=request_id, finish_reason=FinishReason.ERROR, error=error)
        )

    def abort(self, request_id: str) -> None:
        """End a request and free its blocks at once. Unknown ids are ignored: it may just have ended."""
        request = self._requests.get(request_id)
        if request is not None:
            self._finish(request)
            self._ended.append(ended(request, FinishReason.ABORT))

    def abort_all(self) -> None:
        """End every request, for shutdown."""
        for request_id in list(self._requests):
            self.abort(request_id)

    def schedule(self) -> StepPlan:
        """Plan the next step, not while `must_wait`.

        Returns:
            The plan, decodes first. Its result must be given to `update`, unless it is empty: then no request
            is left to compute, or none before the result of the step in flight.
        """
        assert len(self._in_flight) < 2, "two steps have no result yet"
        self._flight, self._num_samples = Flight(), 0
        num_preemptions = self._num_preemptions
        items = self._schedule_decodes()
        is_calm = self._num_preemptions == num_preemptions
        num_draft_tokens = sum(item.num_draft_tokens for item in items) if self._budgets.draft_rows else 0
        num_decodes = len(items)
        beside = self._pace.tokens(num_decodes) if self._pace and num_decodes else None
        allowance = self._budgets.prefill(num_decodes, len(self._waiting), num_draft_tokens, beside)
        shares = self._prefills.shares(allowance, may_start=is_calm)
        items += [self._item(request, count) for request, count in shares]
        if self._pace:
            self._flight.time(num_decodes, allowance)
        plan = StepPlan(items)
        if items:
            self._in_flight.append(self._flight)
        self._num_steps += bool(items)
        self._num_scheduled_tokens += plan.num_tokens
        return plan

    def update(self, result: StepResult, duration_s: float | None = None) -> list[RequestOutput]:
        """Take in the result of the earliest plan without one; without any, only say what else has ended.

        Args:
            result: of the plan.
            duration_s: what the step took, where it is known.

        Returns:
            New tokens and ends, also the ends that came about without a result.
        """
        outputs, self._ended = self._ended, []
        flight = self._in_flight.popleft() if self._in_flight else Flight()
        self._num_in_step = len(flight.items)
        if flight.is_void:
            return outputs
        if result.error is not None:
            return outputs + self._fail(flight, result.error)
        if self._pace and flight.num_decodes and duration_s is not None:
            self._pace.observe(flight.num_decodes, flight.num_prompt_tokens, duration_s)
        for request, item, tokens, scored in flight.parts(result):
            # Else it was aborted while its step ran, or the step before ended it.
            if request.status is RequestStatus.RUNNING:
                outputs.append(self._accept(request, item, tokens, scored))
        return outputs

    def stats(self) -> EngineStats:
        """Return the gauges and totals for /metrics."""
        return EngineStats(
            num_waiting=len(self._waiting),
            num_running=len(self._running),
            num_in_step=self._num_in_step,
            kv_usage=1.0 - self._pool.num_free / self._pool.num_blocks,
            num_preemptions=self._num_preemptions,
            prefix_queries=self._running.prefix_queries,
            prefix_hits=self._running.prefix_hits,
            num_steps=self._num_steps,
            num_scheduled_tokens=self._num_scheduled_tokens,
            num_drafts=self._drafts.num_drafts,
            num_draft_tokens=self._drafts.num_draft_tokens,
            num_accepted_tokens=self._drafts.num_accepted_tokens,
        )

    def check(self) -> None:
        """Assert every invariant; valid after `update`, with at most one step in flight.

        Raises:
            AssertionError: the first invariant that does not hold.
        """
        pending = [
            request
            for flight in self._in_flight
            for request, item in flight.items
            if item.samples and not flight.is_void
        ]
        for request in self._requests.values():
            assert request.num_pending_tokens == pending.count(request), "pending tokens are counted wrongly"
            num_told = request.num_scored_tokens + sum(f.num_scored(request) for f in self._in_flight)
            num_due = min(request.num_computed_tokens, request.num_scorable_tokens)
            assert num_told == max(request.num_scored_tokens, num_due), "prompt tokens are scored wrongly"
        assert set(self._requests.values()) == {*self._running, *self._waiting}
        assert len(self._requests) == len(self._running) + len(self._waiting), "a request is queued twice"
        for request in self._waiting:
            assert request.status is RequestStatus.WAITING
            assert not request.block_ids, "a waiting request holds blocks"
            assert request.num_computed_tokens == 0, "a waiting request has computed tokens"
        self._running.check()
        self._prefills.check()

    def _schedule_decodes(self) -> list[ScheduledRequest]:
        items: list[ScheduledRequest] = []
        index = 0
        spare = self._drafts.allowance(len(self._running))
        max_model_len = self._budgets.max_model_len
        while index < len(self._running):
            request = self._running[index]
            if request.num_missing_tokens == 1 and not request.is_ending(max_model_len):
                if self._running.needs_block(request) and not self._grow(request):
                    continue  # it left the list, so its place is the next one's
                draft: Sequence[int] = ()
                if spare:
                    draft = self._drafts.propose(request, min(spare, self._draft_room(request)))
                    spare -= len(draft)
                items.append(self._item(request, 1, draft))
            index += 1
        return items

    def _grow(self, request: Request) -> bool:
        """Give the request a block for its last token, which needs one, at the cost of those behind it.

        Returns:
            False when it had to stop running itself: it was the last, or the pool is too small for it.
        """
        if request.num_expected_tokens > self._capacity:
            self._fail_too_long(request)
            return False
        while not self._running.grow(request):
            victim = self._running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _draft_room(self, request: Request) -> int:
        """Return how long a draft may be: a guess takes no block, and its last token's successor must fit."""
        return min(self._running.room(request), self._budgets.max_model_len - request.num_tokens - 1)

    def _item(self, request: Request, count: int, draft: Sequence[int] = ()) -> ScheduledRequest:
        item = self._running.compute(request, count, draft)
        if item.samples:
            request.num_pending_tokens += 1
            request.pending_index = self._num_samples
            self._num_samples += item.num_samples
        self._flight.items.append((request, item))
        return item

    def _preempt(self, request: Request) -> None:
        """Make a running request wait again; its order puts it ahead of all that came after it.

        It loses pending tokens, so unless their step is void nothing may be in flight.
        """
        if request.num_tokens > self._capacity:
            self._fail_too_long(request)
            return
        self._running.stop(request)
        request.status = RequestStatus.WAITING
        self._prefills.queue(request)
        request.num_preemptions += 1
        self._num_preemptions += 1

    def _accept(
        self,
        request: Request,
        item: ScheduledRequest,
        sampled: Sequence[SampledToken],
        scored: ScoredPrompt | None,
    ) -> RequestOutput:
        """Take what a step gave a request: scores of its prompt, a token, or both, or several tokens."""
        if scored is not None:
            if scored.error is not None:
                return self._fail_alone(request, scored.error)
            request.num_scored_tokens += len(scored.logprobs)
        if not sampled:
            return stepped(request, sampled, None, scored)
        request.num_pending_tokens -= 1
        if not item.num_draft_tokens:
            return self._accept_one(request, sampled[0], scored)
        return self._accept_draft(request, item, sampled)

    def _accept_draft(
        self, request: Request, item: ScheduledRequest, sampled: Sequence[SampledToken]
    ) -> RequestOutput:
        """Take the tokens of a request up to the first that its draft did not foresee."""
        kept: list[SampledToken] = []
        draft = item.draft_token_ids
        for token, guess in zip_longest(sampled, draft):
            assert token.request_id == request.request_id, "the result's order differs from the plan's"
            if token.error is not None:
                break
            request.append(token.token_id)
            kept.append(token)
            reason = finish_reason(request, self._budgets.max_model_len)
            if reason is not None or token.token_id != guess:
                break
            request.num_computed_tokens += 1  # the step has computed it, as the guess that it was
        self._drafts.verified(request, len(draft), max(0, len(kept) - 1))
        if not kept:
            return self._fail_alone(request, sampled[0].error)
        if reason is not None:
            self._finish(request)
        return stepped(request, kept, reason)

    def _accept_one(
        self, request: Request, token: SampledToken, scored: ScoredPrompt | None
    ) -> RequestOutput:
        """Take the only token that a step sampled for a request."""
        assert token.request_id == request.request_id, "the result's order differs from the plan's"
        if token.error is not None:
            return self._fail_alone(request, token.error)
        request.append(token.token_id)
        reason = finish_reason(request, self._budgets.max_model_len)
        if reason is not None:
            self._finish(request)
        else:
            self._running.publish(request)  # what a step in flight fills with a token that was pending
        return stepped(request, (token,), reason, scored)

    def _fail_alone(self, request: Request, error: str | None) -> RequestOutput:
        """End a request whose logits are unusable.

        What made them so may sit in its KV, where it would fail every later prompt alike.
        """
        self._pool.unpublish(request.block_ids)
        self._finish(request)
        return ended(request, FinishReason.ERROR, error=error)

    def _fail(self, flight: Flight, error: str) -> list[RequestOutput]:
        """End a step's requests; what their blocks were published for, aborted ones' too, is not in them.

        Nor is it in the blocks of a later step, whose other requests may share them: those start again.
        """
        outputs = []
        for request, item in flight.items:
            self._pool.unpublish(item.block_ids)
            if request.status is RequestStatus.RUNNING:
                self._finish(request)
                outputs.append(ended(request, FinishReason.ERROR, error=error))
        for later in self._in_flight:
            later.is_void = True
            for request, item in later.items:
                self._pool.unpublish(item.block_ids)
                if request.status is RequestStatus.RUNNING:
                    self._preempt(request)
        return outputs

    def _fail_too_long(self, request: Request) -> None:
        """End a request that has outgrown the whole pool: it could neither go on nor ever start again."""
        self._finish(request)
        error = too_long_for_pool(request, self._capacity)
        self._ended.append(ended(request, FinishReason.ERROR, error=error))

    def _finish(self, request: Request) -> None:
        if request.status is RequestStatus.RUNNING:
            self._running.stop(request)
        else:
            self._waiting.remove(request)
        request.status = RequestStatus.FINISHED
        self._drafts.forget(request)
        del self._requests[request.request_id]
