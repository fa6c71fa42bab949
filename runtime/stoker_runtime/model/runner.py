"""The Runner over a real model: one StepPlan in, its tokens and its prompts' scores out."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from stoker_runtime.core.step import StepPlan, StepResult
from stoker_runtime.messages import EngineReady
from stoker_runtime.model.architecture import Architecture
from stoker_runtime.model.cuda.choices import Decision
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.picker import Picker
from stoker_runtime.model.sampler import Sampled, sample
from stoker_runtime.model.scorer import Scored, score

_OUT_OF_MEMORY = (
    "the engine ran out of memory while it computed this request's step; try again, or serve the model with "
    "a lower {} or --max-num-batched-tokens"
)
# What PyTorch's allocators say, on a device and on a CPU, and what its libraries say in an error of any type.
_OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")

logger = logging.getLogger(__name__)


class AnyDecoder(Protocol):
    """A loaded model, whoever computes its steps; decoder.Decoder says what each member is."""

    architecture: Architecture
    num_bytes: int

    @property
    def picker(self) -> Picker: ...  # noqa: D102

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def set_max_positions(self, count: int) -> None: ...  # noqa: D102

    def __call__(self, plan: StepPlan, cache: KVCache) -> Tensor: ...  # noqa: D102


@runtime_checkable
class RecordingDecoder(AnyDecoder, Protocol):
    """One that records steps for one cache, so that they cost fewer launches."""

    def record(self, cache: KVCache, sizes: Sequence[int], token_sizes: Sequence[int]) -> None:
        """Record steps of numbers of decodes, and with prompts steps of numbers of tokens; or none."""
        ...


@runtime_checkable
class ChoosingDecoder(AnyDecoder, Protocol):
    """One with several ways to compute the same, which only a measurement can choose between."""

    decisions: tuple[Decision, ...]  # that were taken

    def choose(self, block_size: int, kv_dtype: torch.dtype) -> None:
        """Choose for caches of such blocks; needed at most once, after set_max_positions, before any step."""
        ...


@runtime_checkable
class FeedingDecoder(AnyDecoder, Protocol):
    """One that fills in placeholders on the device: its steps need not wait for each other's tokens."""

    def feed(self, token_ids: Tensor) -> None:
        """Take what a step sampled, [samples], -1 for none, for the placeholders of the next one."""
        ...


class ModelRunner:
    """Computes steps with a decoder and the KV cache that it owns; see core.step.AsyncRunner."""

    def __init__(self, decoder: AnyDecoder, cache: KVCache, ready: EngineReady) -> None:
        self.decoder = decoder
        self.cache = cache
        self._ready = ready
        self._submitted: deque[_Launched | str] = deque()  # or why there is none

    def ready(self) -> EngineReady:
        """Describe what was loaded."""
        return self._ready

    def step(self, plan: StepPlan) -> StepResult:
        """Compute one step; see core.step.Runner. None may be in flight."""
        self.submit(plan)
        return self.collect()

    def submit(self, plan: StepPlan) -> None:
        """Launch a step behind those before it; a decoder on a CPU computes it right away."""
        try:
            self._submitted.append(_launch(self.decoder, self.cache, plan))
            return
        except (MemoryError, RuntimeError) as error:
            _check_memory(error, plan)
        # Only now are the step's own tensors gone, and what the allocator keeps may be in the wrong pieces.
        is_cuda = self.decoder.device.type == "cuda"
        if is_cuda:
            torch.cuda.empty_cache()
        flag = "--memory-fraction" if is_cuda else "--kv-cache-memory"
        self._submitted.append(_OUT_OF_MEMORY.format(flag))

    def collect(self) -> StepResult:
        """Wait for the tokens of the earliest submitted step."""
        launched = self._submitted.popleft()
        return StepResult(error=launched) if isinstance(launched, str) else launched.result()


def run_step(decoder: AnyDecoder, cache: KVCache, plan: StepPlan) -> StepResult:
    """Compute a plan against a cache: forward, then sample."""
    return _launch(decoder, cache, plan).result()


@dataclass(frozen=True, slots=True)
class _Launched:
    """What a step gives; on a device it may still have to be computed."""

    sampled: Sampled
    scored: Scored | None

    def result(self) -> StepResult:
        """Wait for it."""
        scored = [] if self.scored is None else self.scored.prompts()
        return StepResult(self.sampled.tokens(), scored=scored)


@torch.inference_mode()
def _launch(decoder: AnyDecoder, cache: KVCache, plan: StepPlan) -> _Launched:
    """Launch all of a step: forward, sample, and send what was sampled to the next step and to the host."""
    logits = decoder(plan, cache)
    positions, scored = plan.positions(), plan.scored
    sampled = sample(logits[: len(positions)] if scored else logits, positions, decoder.picker)
    if isinstance(decoder, FeedingDecoder):
        decoder.feed(sampled.token_ids)
    scores = score(logits[len(positions) :], scored, decoder.picker).sent() if scored else None
    return _Launched(sampled.sent(), scores)


def _check_memory(error: MemoryError | RuntimeError, plan: StepPlan) -> None:
    """Log an error that says that memory ran out; raise any other."""
    is_known = any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)
    if not isinstance(error, MemoryError) and not is_known:
        raise error
    logger.error("a step of %d tokens ran out of memory: %s", plan.num_tokens, error)
