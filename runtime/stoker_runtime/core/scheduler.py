"""Which tokens the next step computes. Pure: integers in, integers out; no torch, no clock, no I/O, no text.

One rule gives continuous batching, chunked prefill, prefix hits and preemption: each request's
`num_computed_tokens` catches up with its tokens, within one token budget per step.

1. Running requests, oldest first, compute what they miss as far as the budget goes. Only the newest can be in
   the middle of its prompt, and the budget is at least max_num_seqs, so decodes never wait for a prefill.
2. When blocks run out, the newest running request gives its blocks back and waits again, to be recomputed;
   its blocks stay findable, so the recomputation is short if nobody took them.
3. Unless something was preempted, waiting requests are admitted in order of arrival while budget and blocks
   last. They start after the longest prefix whose blocks are known, but always compute their last token.

Every running request is older than every waiting one. So the oldest request moves in each step, and each
request ends.
"""

from __future__ import annotations

from collections import deque

from stoker_runtime.core.block_pool import BlockPool
from stoker_runtime.core.request import Request, RequestStatus
from stoker_runtime.core.step import SampledToken, ScheduledRequest, StepPlan, StepResult
from stoker_runtime.messages import EngineStats, FinishReason, RequestOutput


class Scheduler:
    """Plans steps and turns their results into outputs.

    Args:
        max_num_seqs: requests that may run at once.
        max_num_batched_tokens: tokens that a step may compute; at least max_num_seqs.
        max_model_len: prompt and output tokens that one request may have.
        block_pool: where KV lives; used by this scheduler only.

    Raises:
        ValueError: a budget that could leave a request without a token for ever.
    """

    def __init__(
        self, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int, block_pool: BlockPool
    ) -> None:
        if not 1 <= max_num_seqs <= max_num_batched_tokens:
            raise ValueError(f"need 1 <= max_num_seqs {max_num_seqs} <= budget {max_num_batched_tokens}")
        self._max_num_seqs = max_num_seqs
        self._budget = max_num_batched_tokens
        self._max_model_len = max_model_len
        self._pool = block_pool
        self._capacity = block_pool.num_blocks * block_pool.block_size  # tokens
        self._requests: dict[str, Request] = {}
        self._waiting: deque[Request] = deque()  # oldest first
        self._running: list[Request] = []  # oldest first
        self._in_step: list[tuple[Request, ScheduledRequest]] = []  # the latest plan, until its update
        self._ended: list[RequestOutput] = []  # ends that no step result brings; go out with the next update
        self._num_preemptions = 0
        self._prefix_queries = 0
        self._prefix_hits = 0
        self._num_in_step = 0
        self._num_steps = 0
        self._num_scheduled_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether another step has something to compute or to say."""
        return bool(self._requests or self._ended)

    def add(self, request: Request) -> None:
        """Queue a request. One that can never run ends with an error output in the next update."""
        problem = self._why_impossible(request)
        if problem is not None:
            self.refuse(request.request_id, problem)
            return
        self._requests[request.request_id] = request
        self._waiting.append(request)

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
            self._ended.append(_end(request, FinishReason.ABORT))

    def abort_all(self) -> None:
        """End every request, for shutdown."""
        for request_id in list(self._requests):
            self.abort(request_id)

    def schedule(self) -> StepPlan:
        """Plan the next step. Its result must be given to `update` before the next call.

        Returns:
            The plan; empty only when no request is left to compute.
        """
        assert not self._in_step, "the last step has no result yet"
        num_preemptions = self._num_preemptions
        items = self._schedule_running()
        if self._num_preemptions == num_preemptions:
            items += self._admit(self._budget - sum(len(item.token_ids) for item in items))
        plan = StepPlan(items)
        self._num_in_step = len(items)
        self._num_steps += bool(items)
        self._num_scheduled_tokens += plan.num_tokens
        return plan

    def update(self, result: StepResult) -> list[RequestOutput]:
        """Take in the latest plan's result.

        Args:
            result: one entry per request of the plan that samples, in the plan's order.

        Returns:
            New tokens and ends, also the ends that came about without a result.
        """
        outputs, self._ended = self._ended, []
        in_step, self._in_step = self._in_step, []
        if result.error is not None:
            return outputs + self._fail(in_step, result.error)
        sampled = iter(result.sampled)
        for request, item in in_step:
            token = next(sampled) if item.samples else None
            if request.status is not RequestStatus.RUNNING:
                continue  # aborted while its step ran
            request.num_computed_tokens += len(item.token_ids)
            if token is not None:
                outputs.append(self._accept(request, token))
        assert next(sampled, None) is None, "the result has more tokens than the plan asked for"
        return outputs

    def stats(self) -> EngineStats:
        """Return the gauges and totals for /metrics."""
        return EngineStats(
            num_waiting=len(self._waiting),
            num_running=len(self._running),
            num_in_step=self._num_in_step,
            kv_usage=1.0 - self._pool.num_free / self._pool.num_blocks,
            num_preemptions=self._num_preemptions,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            num_steps=self._num_steps,
            num_scheduled_tokens=self._num_scheduled_tokens,
        )

    def check(self) -> None:
        """Assert every invariant; valid between steps, which is after `update` and before `schedule`.

        Raises:
            AssertionError: the first invariant that does not hold.
        """
        assert not self._in_step, "a step has no result yet"
        assert len(self._running) <= self._max_num_seqs, "more requests run than may"
        assert set(self._requests) == {request.request_id for request in (*self._running, *self._waiting)}
        assert len(self._requests) == len(self._running) + len(self._waiting), "a request is queued twice"
        arrivals = list(self._requests.values())
        assert arrivals == [*self._running, *self._waiting], "a younger request overtook an older one"
        for request in self._waiting:
            assert request.status is RequestStatus.WAITING
            assert not request.block_ids, "a waiting request holds blocks"
            assert request.num_computed_tokens == 0, "a waiting request has computed tokens"
        for request in self._running:
            assert request.status is RequestStatus.RUNNING
            assert request.num_missing_tokens >= 1, "a running request has nothing to compute"
            assert len(request.block_ids) == self._pool.blocks_for(request.num_computed_tokens)
            assert request.num_missing_tokens == 1 or request is self._running[-1], (
                "a decode may wait for a prefill"
            )
        self._pool.check(request.block_ids for request in self._running)

    def _schedule_running(self) -> list[ScheduledRequest]:
        items: list[ScheduledRequest] = []
        budget = self._budget
        while len(items) < len(self._running):
            request = self._running[len(items)]
            count = min(request.num_missing_tokens, budget)
            if self._grow(request, count):
                items.append(self._item(request, count))
                budget -= count
        return items

    def _grow(self, request: Request, count: int) -> bool:
        """Give the request blocks for `count` more tokens, at the cost of newer requests.

        Returns:
            False when it had to stop running itself: it was the newest, or the pool is too small for it.
        """
        if request.num_tokens > self._capacity:
            self._finish(request)
            self._ended.append(_end(request, FinishReason.ERROR, error=self._too_long_for_pool(request)))
            return False
        needed = self._pool.blocks_for(request.num_computed_tokens + count) - len(request.block_ids)
        while needed > self._pool.num_free:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        if needed:
            request.block_ids += self._pool.take(needed)
        return True

    def _admit(self, budget: int) -> list[ScheduledRequest]:
        items: list[ScheduledRequest] = []
        while self._waiting and budget and len(self._running) < self._max_num_seqs:
            request = self._waiting[0]
            hits = self._find_prefix(request)
            # All its tokens must fit, and every running request gets a block to grow into: an admission that
            # is undone a few steps later only costs time.
            needed = self._pool.blocks_for(request.num_tokens) - len(hits) + len(self._running)
            if needed > self._pool.num_free - self._pool.num_idle(hits):
                break
            self._waiting.popleft()
            self._start(request, hits)
            count = min(request.num_missing_tokens, budget)
            request.block_ids += self._pool.take(
                self._pool.blocks_for(request.num_computed_tokens + count) - len(request.block_ids)
            )
            items.append(self._item(request, count))
            budget -= count
        return items

    def _find_prefix(self, request: Request) -> list[int]:
        """Return the known blocks that the request starts with; its last token is always left to compute."""
        num_blocks = (request.num_tokens - 1) // self._pool.block_size
        self._pool.extend_hashes(request.block_hashes, request.token_ids, num_blocks, request.cache_salt)
        return self._pool.find(request.block_hashes[:num_blocks])

    def _start(self, request: Request, hits: list[int]) -> None:
        self._pool.share(hits)
        request.block_ids = hits
        request.num_computed_tokens = len(hits) * self._pool.block_size
        request.status = RequestStatus.RUNNING
        self._running.append(request)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
            if self._pool.is_caching:
                self._prefix_queries += request.num_tokens
                self._prefix_hits += request.num_cached_tokens

    def _item(self, request: Request, count: int) -> ScheduledRequest:
        """Describe the request's share of the step and make the blocks it fills findable right away.

        Whoever shares such a block comes later in the same plan or in a later one, and a runner stores KV
        before it attends, so the block is filled before it is read.
        """
        start, end = request.num_computed_tokens, request.num_computed_tokens + count
        filled = range(start // self._pool.block_size, end // self._pool.block_size)
        if filled and self._pool.is_caching:
            self._pool.extend_hashes(request.block_hashes, request.token_ids, filled.stop, request.cache_salt)
            for index in filled:
                self._pool.publish(request.block_ids[index], request.block_hashes[index])
        item = ScheduledRequest(
            request_id=request.request_id,
            token_ids=request.token_ids[start:end],
            num_computed_tokens=start,
            block_ids=request.block_ids,
            samples=end == request.num_tokens,
            sampling=request.sampling,
            seed=request.seed,
            prompt_token_ids=request.prompt_token_ids,
            output_token_ids=request.output_token_ids,
            masked_token_ids=request.masked_now(),
        )
        self._in_step.append((request, item))
        return item

    def _preempt(self, request: Request) -> None:
        """Make the newest running request wait again, ahead of all that never ran."""
        assert self._running.pop() is request
        self._release(request)
        request.status = RequestStatus.WAITING
        self._waiting.appendleft(request)
        self._num_preemptions += 1

    def _accept(self, request: Request, sampled: SampledToken) -> RequestOutput:
        assert sampled.request_id == request.request_id, "the result's order differs from the plan's"
        if sampled.error is not None:
            # What made its logits unusable may sit in its KV, where it would fail every later prompt alike.
            self._pool.unpublish(request.block_ids)
            self._finish(request)
            return _end(request, FinishReason.ERROR, error=sampled.error)
        request.append(sampled.token_id)
        reason = self._finish_reason(request)
        if reason is not None:
            self._finish(request)
        return RequestOutput(
            request_id=request.request_id,
            token_ids=[sampled.token_id],
            logprobs=[] if sampled.logprob is None else [sampled.logprob],
            finish_reason=reason,
            stop_token_id=sampled.token_id if reason is FinishReason.STOP else None,
            num_cached_tokens=request.num_cached_tokens or 0,
        )

    def _fail(self, in_step: list[tuple[Request, ScheduledRequest]], error: str) -> list[RequestOutput]:
        """End a step's requests; what their blocks were published for, aborted ones' too, is not in them."""
        outputs = []
        for request, item in in_step:
            self._pool.unpublish(item.block_ids)
            if request.status is RequestStatus.RUNNING:
                self._finish(request)
                outputs.append(_end(request, FinishReason.ERROR, error=error))
        return outputs

    def _finish_reason(self, request: Request) -> FinishReason | None:
        if request.output_token_ids[-1] in request.end_token_ids:
            return FinishReason.STOP
        is_long = request.num_tokens >= self._max_model_len
        if is_long or len(request.output_token_ids) >= request.sampling.max_tokens:
            return FinishReason.LENGTH
        return None

    def _finish(self, request: Request) -> None:
        if request.status is RequestStatus.RUNNING:
            self._running.remove(request)
            self._release(request)
        else:
            self._waiting.remove(request)
        request.status = RequestStatus.FINISHED
        del self._requests[request.request_id]

    def _release(self, request: Request) -> None:
        self._pool.release(request.block_ids)
        # A new list: the plan that the runner may still look at keeps the old one.
        request.block_ids = []
        request.num_computed_tokens = 0

    def _why_impossible(self, request: Request) -> str | None:
        if request.request_id in self._requests:
            return f"request id {request.request_id!r} is in use"
        if not request.prompt_token_ids:
            return "the prompt has no tokens"
        if request.num_tokens >= self._max_model_len:
            limit = self._max_model_len - 1
            return f"the prompt has {request.num_tokens} tokens; at most {limit} leave room for output"
        if request.num_tokens > self._capacity:
            return self._too_long_for_pool(request)
        return None

    def _too_long_for_pool(self, request: Request) -> str:
        return (
            f"the request has {request.num_tokens} tokens and the whole KV cache holds {self._capacity}; "
            "shorten it, or serve the model with more --kv-cache-memory or --memory-fraction"
        )


def _end(request: Request, reason: FinishReason, error: str | None = None) -> RequestOutput:
    return RequestOutput(
        request_id=request.request_id,
        finish_reason=reason,
        num_cached_tokens=request.num_cached_tokens or 0,
        error=error,
    )
