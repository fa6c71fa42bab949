"""The Runner over a real model: one StepPlan in, one token per sampling request out."""

from __future__ import annotations

import torch

from stoker_runtime.core.step import StepPlan, StepResult
from stoker_runtime.messages import EngineReady
from stoker_runtime.model.decoder import Decoder
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.native.decoder import NativeDecoder
from stoker_runtime.model.sampler import sample

AnyDecoder = Decoder | NativeDecoder


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
        return run_step(self.decoder, self.cache, plan)


@torch.inference_mode()
def run_step(decoder: AnyDecoder, cache: KVCache, plan: StepPlan) -> StepResult:
    """Compute a plan against a cache: forward, then sample."""
    if not plan.requests:
        return StepResult()
    logits = decoder(plan, cache)
    requests = [request for request in plan.requests if request.samples]
    return StepResult(sample(logits, requests, decoder.picker))
