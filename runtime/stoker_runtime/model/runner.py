"""The Runner over a real model: one StepPlan in, one token per sampling request out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from stoker_runtime.core.step import StepPlan, StepResult
from stoker_runtime.messages import EngineReady
from stoker_runtime.model.architecture import Architecture
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.picker import Picker
from stoker_runtime.model.sampler import sample

_OUT_OF_MEMORY = (
    "the engine ran out of memory while it computed this request's step; try again, or serve the model with "
    "a lower --memory-fraction or --max-num-batched-tokens"
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

    def record(self, cache: KVCache, sizes: Sequence[int]) -> None: ...  # noqa: D102


class ModelRunner:
    """Computes steps with a decoder and the KV cache that it owns."""

    def __init__(self, decoder: AnyDecoder, cache: KVCache, ready: EngineReady) -> None:
        self.decoder = decoder
        self.cache = cache
        self._ready = ready

    def ready(self) -> EngineReady:
        """Describe what was loaded."""
        return self._ready

    def step(self, plan: StepPlan) -> StepResult:
        """Compute one step; see core.step.Runner."""
        try:
            return run_step(self.decoder, self.cache, plan)
        except RuntimeError as error:
            if not any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS):
                raise
            logger.error("a step of %d tokens ran out of memory: %s", plan.num_tokens, error)
        # Only now are the step's own tensors gone, and what the allocator keeps may be in the wrong pieces.
        if self.decoder.device.type == "cuda":
            torch.cuda.empty_cache()
        return StepResult(error=_OUT_OF_MEMORY)


@torch.inference_mode()
def run_step(decoder: AnyDecoder, cache: KVCache, plan: StepPlan) -> StepResult:
    """Compute a plan against a cache: forward, then sample."""
    if not plan.requests:
        return StepResult()
    logits = decoder(plan, cache)
    return StepResult(sample(logits, plan.positions(), decoder.picker).tokens())
