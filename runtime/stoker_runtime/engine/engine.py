"""One model being served: a scheduler and a runner, stepped together. No I/O.

With asynchronous scheduling a step is planned and submitted while the one before is computed; the result of
that one is then read, told and sent while the device is already busy with the next.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import deque
from collections.abc import Callable

from stoker_runtime.config import FEW_REQUESTS, EngineConfig
from stoker_runtime.core.block_pool import BlockPool
from stoker_runtime.core.budgets import Budgets
from stoker_runtime.core.request import Request
from stoker_runtime.core.scheduler import Scheduler
from stoker_runtime.core.step import Runner, StepPlan, StepResult
from stoker_runtime.engine.queue_times import QueueTimes
from stoker_runtime.engine.runners import as_async
from stoker_runtime.messages import AddRequest, StepOutputs


class Engine:
    """Takes requests and steps them to their end.

    Args:
        runner: the loaded model; its `ready()` says how many KV blocks there are.
        config: budgets; what is automatic follows the runner's device.
        hash_key: secret of the prefix cache; None draws one, so prefixes cannot be guessed across processes.
        clock: seconds on the clock of AddRequest.arrival_s, and what steps are timed by.
    """

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        hash_key: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        ready = runner.ready()
        config = config.for_device(ready.device)
        key = (hash_key or secrets.token_bytes(32)) if config.prefix_caching else None
        budgets = budgets_of(config, ready.max_model_len, ready.vocab_size)
        self.scheduler = Scheduler(budgets, BlockPool(ready.num_blocks, ready.block_size, key))
        self._runner = runner
        self._steps, self._max_in_flight = as_async(runner, ready, config.async_scheduling)
        self._eos_token_ids = ready.eos_token_ids
        self._vocab_size = ready.vocab_size
        self._seeds = random.Random(config.seed)
        self._queue_times = QueueTimes()
        self._clock = clock
        self._submitted_s: deque[float] = deque()  # of the steps in flight
        self._collected_s = 0.0  # when the last step was
        self._handover_s = config.handover_s
        self._is_drawn_out = False  # the last step

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to compute or to say."""
        return self.scheduler.has_work

    @property
    def handover_s(self) -> float:
        """Seconds for which to leave the cores to whoever hands the last step's tokens on.

        0 unless prompts make steps longer in which few decode: else the next step is soon over, or throughput
        counts more than when each token arrives.
        """
        return self._handover_s if self._is_drawn_out else 0.0

    def add(self, command: AddRequest) -> None:
        """Start a request; one that cannot work is answered with an error output by the next step."""
        stray = _stray_token_id(command, self._vocab_size)
        if stray is not None:
            message = f"token id {stray} is outside the vocabulary of {self._vocab_size}"
            self.scheduler.refuse(command.request_id, message)
            return
        seed = command.sampling.seed
        if seed is None:
            seed = self._seeds.getrandbits(63)
        self._queue_times.arrived(command)
        self.scheduler.add(Request(command, seed, self._eos_token_ids))

    def abort(self, request_id: str) -> None:
        """End a request; its blocks are free before the next step."""
        self._queue_times.forget(request_id)
        self.scheduler.abort(request_id)

    def abort_all(self) -> None:
        """End every request."""
        self.scheduler.abort_all()

    def step(self) -> StepOutputs:
        """Compute one step. Any exception is fatal: the KV cache can no longer be trusted.

        Returns:
            What the step gave each request. Without work it computes nothing and reports the stats.
        """
        self._is_drawn_out = False
        while self.scheduler.num_in_flight < self._max_in_flight and not self.scheduler.must_wait:
            plan = self.scheduler.schedule()
            if not plan.requests:
                break
            self._is_drawn_out = _is_drawn_out(plan)
            now_s = self._clock()
            self._queue_times.started(plan, now_s)
            self._submitted_s.append(now_s)
            self._steps.submit(plan)
        result, duration_s = self._collect() if self.scheduler.num_in_flight else (StepResult(), None)
        outputs = self._queue_times.stamped(self.scheduler.update(result, duration_s))
        return StepOutputs(outputs=outputs, stats=self.scheduler.stats())

    def _collect(self) -> tuple[StepResult, float]:
        """Wait for a step; returns how long it took: from the end of the one before, as they run in order."""
        result = self._steps.collect()
        begun_s = max(self._collected_s, self._submitted_s.popleft())
        self._collected_s = self._clock()
        return result, self._collected_s - begun_s


def _is_drawn_out(plan: StepPlan) -> bool:
    """Whether few requests that decode wait for the prompts of others."""
    num_decodes = sum(
        item.samples and len(item.token_ids) == 1 + item.num_draft_tokens for item in plan.requests
    )
    return 0 < num_decodes < len(plan.requests) and num_decodes <= FEW_REQUESTS


def budgets_of(config: EngineConfig, max_model_len: int, vocab_size: int = 1) -> Budgets:
    """Return what the steps of an engine may hold.

    Args:
        config: `for_device`.
        max_model_len: tokens of one request.
        vocab_size: of the model.
    """
    return Budgets(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=max_model_len,
        prefill_beside_decodes=config.max_prefill_tokens_beside_decodes,
        prefill_per_request=config.prefill_per_request,
        few_requests=FEW_REQUESTS,
        stretch=config.prefill_stretch,
        context_price=config.prefill_context_price,
        long_prompt_tokens=config.long_prompt_tokens,
        draft_rows=config.draft_rows,
        scoring_bytes=config.scoring_bytes,
        vocab_size=vocab_size,
    )


def _stray_token_id(command: AddRequest, vocab_size: int) -> int | None:
    """Return a token id that would read past the model's tables, which a GPU answers by failing for good."""
    sampling = command.sampling
    for ids in (
        command.prompt_token_ids,
        sampling.logit_bias,
        sampling.stop_token_ids,
        sampling.allowed_token_ids,
        *sampling.bad_words_token_ids,
    ):
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            return min(ids) if min(ids) < 0 else max(ids)
    return None
