"""Builders for the runtime's tests: requests, configurations and a runner that needs no model.

FakeRunner keeps a KV cache of plain integers. Each slot holds a digest of the token and of every slot before
it, as a real model's KV depends on the whole prefix, and the next token is a function of all the slots that
the block table names. A wrong, stale or prematurely shared slot therefore changes the answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from msgspec.structs import replace

from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import SampledToken, ScheduledRequest, ScoredPrompt, StepPlan, StepResult
from stoker_runtime.messages import AddRequest, EngineReady, SamplingParams, TokenLogprob

_MASK = (1 << 61) - 1
_ids = count()


def make_sampling(max_tokens: int = 8, **options: Any) -> SamplingParams:
    """Greedy sampling parameters unless options say otherwise."""
    return SamplingParams(**{"max_tokens": max_tokens, "temperature": 0.0, **options})


def make_request(
    prompt: list[int] | None = None,
    *,
    num_prompt_tokens: int = 3,
    request_id: str | None = None,
    cache_salt: str = "",
    priority: int = 0,
    **sampling: Any,
) -> AddRequest:
    """A request with an id of its own and a prompt of 1, 2, 3, ... unless one is given."""
    return AddRequest(
        request_id=f"request-{next(_ids)}" if request_id is None else request_id,
        prompt_token_ids=list(range(1, num_prompt_tokens + 1)) if prompt is None else prompt,
        sampling=make_sampling(**sampling),
        cache_salt=cache_salt,
        priority=priority,
    )


def make_engine_config(**options: Any) -> EngineConfig:
    """An EngineConfig for the CPU with small budgets and a fixed seed."""
    defaults: dict[str, Any] = {"model": "/model", "device": "cpu", "max_num_seqs": 8, "seed": 0}
    return EngineConfig(**{**defaults, **options})


@dataclass
class FakeRunner:
    """A Runner over integers; the same request always gets the same tokens, whatever runs beside it."""

    num_blocks: int = 64
    block_size: int = 4
    vocab_size: int = 128
    max_model_len: int = 256
    eos_token_ids: tuple[int, ...] = ()
    # Replaces the digest's choice, to script an answer: (request, digest) -> token id.
    next_token: Callable[[ScheduledRequest, int], int] | None = None
    # Called at the start of each step; may wait on an event or raise.
    on_step: Callable[[StepPlan], None] | None = None
    failing_request_ids: set[str] = field(default_factory=set)  # get an error instead of a token
    failing_prompt_ids: set[str] = field(default_factory=set)  # and instead of their prompt's scores
    plans: deque[StepPlan] = field(default_factory=lambda: deque(maxlen=1000))  # the latest plans

    def __post_init__(self) -> None:
        self._slots: list[int | None] = [None] * (self.num_blocks * self.block_size)

    def ready(self) -> EngineReady:
        """Describe this runner as a CPU model without weights."""
        return EngineReady(
            max_model_len=self.max_model_len,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            vocab_size=self.vocab_size,
            device="cpu",
            dtype="float32",
            eos_token_ids=self.eos_token_ids,
            weights_bytes=0,
            kv_cache_bytes=len(self._slots) * 8,
            load_s=0.0,
        )

    def step(self, plan: StepPlan) -> StepResult:
        """Store the plan's KV, then answer the requests that sample."""
        self.plans.append(plan)
        if self.on_step is not None:
            self.on_step(plan)
        digests = [self._store(request) for request in plan.requests]
        return StepResult(
            [
                self._sample(position, digest)
                for request, found in zip(plan.requests, digests, strict=True)
                for position, digest in zip(request.positions(), found[-request.num_samples :], strict=False)
            ],
            scored=[
                self._score(request, found)
                for request, found in zip(plan.requests, digests, strict=True)
                if request.num_scored
            ],
        )

    def _slot(self, request: ScheduledRequest, position: int) -> int:
        block = request.block_ids[position // self.block_size]
        return block * self.block_size + position % self.block_size

    def _store(self, request: ScheduledRequest) -> list[int]:
        """Store the tokens; returns a digest of the context up to each of them."""
        assert request.token_ids, f"{request.request_id} is in the plan with nothing to compute"
        total = 0
        digests = []
        for position in range(request.num_computed_tokens):
            value = self._slots[self._slot(request, position)]
            assert value is not None, (
                f"{request.request_id} reads a slot that was never written, at {position}"
            )
            total += value
        for position, token in enumerate(request.token_ids, start=request.num_computed_tokens):
            value = _mix(total, position, token)
            self._slots[self._slot(request, position)] = value
            total += value
            digests.append(total)
        return digests

    def _score(self, request: ScheduledRequest, digests: list[int]) -> ScoredPrompt:
        if request.request_id in self.failing_prompt_ids:
            return ScoredPrompt(request.request_id, error="logits are not finite")
        num_top = request.sampling.prompt_logprobs
        scores = []
        for token, digest in zip(request.scored_token_ids, digests[request.first_scored :], strict=False):
            score = _logprob(num_top, token, self.vocab_size)
            assert score is not None
            # What it depends on is every slot before it, as a model's would.
            scores.append(replace(score, logprob=-float(digest % 1000), rank=1 + digest % self.vocab_size))
        return ScoredPrompt(request.request_id, scores)

    def _sample(self, request: ScheduledRequest, digest: int) -> SampledToken:
        if request.request_id in self.failing_request_ids:
            return SampledToken(request.request_id, -1, error="logits are not finite")
        position = request.num_computed_tokens + len(request.token_ids)
        if request.sampling.temperature > 0:
            digest = _mix(digest, position, request.seed)
        if self.next_token is not None:
            token = self.next_token(request, digest)
        else:
            token = _mix(digest, position, 0) % self.vocab_size
        while token in request.masked_token_ids:
            token = (token + 1) % self.vocab_size
        return SampledToken(
            request.request_id, token, _logprob(request.sampling.logprobs, token, self.vocab_size)
        )


def _logprob(num_top: int | None, token: int, vocab_size: int) -> TokenLogprob | None:
    if num_top is None:
        return None
    top = [((token + rank) % vocab_size, -0.5 - rank) for rank in range(num_top)]
    return TokenLogprob(token_id=token, logprob=-0.5, top=top)


def _mix(*values: int) -> int:
    digest = 0x9E3779B97F4A7C15
    for value in values:
        digest = ((digest ^ (value & _MASK)) * 0xBF58476D1CE4E5B9) & _MASK
        digest ^= digest >> 29
    return digest
