"""Requests that run, and the KV blocks they hold. Pure.

A request gets the blocks of all its known tokens when it starts, so a prompt that is computed over many steps
never waits for a block half-way, and what is free is free for those who decode. Starting never takes a block
from anybody: it needs a free one for each of its tokens' blocks and one more for each request that runs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from stoker_runtime.core.block_pool import BlockPool
from stoker_runtime.core.queue import by_order
from stoker_runtime.core.request import Request, RequestStatus
from stoker_runtime.core.step import ScheduledRequest, sampled_before

_NONE = range(0)


class Running:
    """Running requests by `Request.order`: the last one is the first to give way.

    Args:
        max_num_seqs: requests that may run at once.
        pool: where KV lives.
    """

    def __init__(self, max_num_seqs: int, pool: BlockPool) -> None:
        self._max_num_seqs = max_num_seqs
        self._pool = pool
        self._block_size = pool.block_size
        self._requests: list[Request] = []
        self.prefix_queries = 0  # prompt tokens looked up since start
        self.prefix_hits = 0  # and found

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __getitem__(self, index: int) -> Request:
        return self._requests[index]

    def start(self, request: Request) -> bool:
        """Give a waiting request blocks and let it run, if one more may and they are free.

        It begins after the longest prefix whose blocks are known, but always computes its last token.
        """
        if len(self._requests) >= self._max_num_seqs:
            return False
        hits = self._find_prefix(request)
        # A block to grow into for all that run: a start that is undone a few steps later only costs time.
        num_own = self._pool.blocks_for(request.num_tokens) - len(hits)
        if num_own + len(self._requests) > self._pool.num_free - self._pool.num_idle(hits):
            return False
        self._pool.share(hits)
        request.block_ids = hits + self._pool.take(num_own)
        request.num_computed_tokens = len(hits) * self._pool.block_size
        request.num_published_blocks = len(hits)
        request.status = RequestStatus.RUNNING
        insort(self._requests, request, key=by_order)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
            if self._pool.is_caching and not request.num_scorable_tokens:
                self.prefix_queries += request.num_tokens
                self.prefix_hits += request.num_cached_tokens
        return True

    def num_unknown_tokens(self, request: Request) -> int:
        """Count the tokens that a waiting request would have to compute if it started now."""
        return request.num_tokens - len(self._find_prefix(request)) * self._pool.block_size

    def _find_prefix(self, request: Request) -> list[int]:
        """Return the known blocks that the request starts with.

        Its last token is always left to compute, and so are all whose logits are still wanted as scores.
        """
        num_tokens = request.num_tokens - 1
        if request.num_scored_tokens < request.num_scorable_tokens:
            num_tokens = request.num_scored_tokens
        num_blocks = num_tokens // self._pool.block_size
        self._pool.extend_hashes(request.block_hashes, request.token_ids, num_blocks, request.cache_salt)
        return self._pool.find(request.block_hashes[:num_blocks])

    def grow(self, request: Request) -> bool:
        """Make room for the request's last token, which may need one more block; False if none is free."""
        if self.needs_block(request):
            if self._pool.num_free == 0:
                return False
            request.block_ids += self._pool.take(1)
        return True

    def needs_block(self, request: Request) -> bool:
        """Tell whether the request's last token is beyond its blocks."""
        num_tokens = len(request.token_ids) + request.num_pending_tokens
        return num_tokens > len(request.block_ids) * self._block_size

    def room(self, request: Request) -> int:
        """Return how many tokens more than it has fit into the request's blocks."""
        return len(request.block_ids) * self._pool.block_size - request.num_tokens

    def compute(self, request: Request, count: int, draft: Sequence[int] = ()) -> ScheduledRequest:
        """Describe the request's share of the step, which counts as computed from now on.

        The blocks that it fills become findable right away. Whoever shares such a block comes later in the
        same plan or in a later one, and a runner stores KV before it attends, so the block is filled before
        it is read. What a draft fills is not findable before it is known to be right.

        Args:
            request: it runs.
            count: of its tokens; a pending one is the last and comes alone.
            draft: guesses behind the last known token, for which there is room.
        """
        start, end = request.num_computed_tokens, request.num_computed_tokens + count
        request.num_computed_tokens = end
        self.publish(request)
        num_pending = request.num_pending_tokens
        token_ids = [sampled_before(request.pending_index)] if num_pending else request.token_ids[start:end]
        if draft:
            token_ids += draft
        scored = request.scored(start, end) if start < request.num_scorable_tokens else _NONE
        return ScheduledRequest(
            request_id=request.request_id,
            token_ids=token_ids,
            num_computed_tokens=start,
            block_ids=request.block_ids,
            samples=end == len(request.token_ids) + num_pending,
            sampling=request.sampling,
            seed=request.seed,
            prompt_token_ids=request.prompt_token_ids,
            output_token_ids=request.output_token_ids,
            masked_token_ids=request.masked_now(),
            allowed_token_ids=request.allowed_token_ids,
            num_draft_tokens=len(draft),
            first_scored=scored.start - start if scored else 0,
            num_scored=len(scored),
        )

    def publish(self, request: Request) -> None:
        """Make the blocks findable that the request has filled with known tokens."""
        least = (request.num_published_blocks + 1) * self._block_size
        if request.num_computed_tokens < least or len(request.token_ids) < least:
            return
        num_tokens = min(request.num_computed_tokens, len(request.token_ids))
        filled = range(request.num_published_blocks, num_tokens // self._pool.block_size)
        request.num_published_blocks = filled.stop
        if self._pool.is_caching:
            self._pool.extend_hashes(request.block_hashes, request.token_ids, filled.stop, request.cache_salt)
            for index in filled:
                self._pool.publish(request.block_ids[index], request.block_hashes[index])

    def stop(self, request: Request) -> None:
        """Take a request out and give its blocks back; they stay findable until somebody takes them."""
        index = bisect_left(self._requests, request.order, key=by_order)
        assert self._requests[index] is request, "the request does not run"
        del self._requests[index]
        self._pool.release(request.block_ids)
        # A new list: the plan that the runner may still look at keeps the old one.
        request.block_ids = []
        request.num_computed_tokens = 0
        request.num_published_blocks = 0
        request.num_pending_tokens = 0

    def check(self) -> None:
        """Assert what holds between steps: order, blocks for what is computed, and something to compute.

        Raises:
            AssertionError: the first invariant that does not hold.
        """
        assert len(self._requests) <= self._max_num_seqs, "more requests run than may"
        orders = [request.order for request in self._requests]
        assert orders == sorted(set(orders)), "running requests are out of order"
        for request in self._requests:
            assert request.status is RequestStatus.RUNNING
            assert request.num_missing_tokens >= 1, "a running request has nothing to compute"
            held, most = len(request.block_ids), self._pool.blocks_for(request.num_expected_tokens)
            least = self._pool.blocks_for(request.num_computed_tokens)
            assert least <= held <= most, "a request holds too few or too many blocks"
            assert held == most or request.num_missing_tokens == 1, "a prompt may have to wait for a block"
        self._pool.check(request.block_ids for request in self._requests)
