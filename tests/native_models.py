"""Small models loaded for the C++ kernels and for PyTorch, and the steps to compare them on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from model_builders import VOCAB_SIZE, write_model
from runtime_builders import make_sampling
from torch import Tensor

from stoker_runtime.config import Dtype, EngineConfig
from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.model import loader
from stoker_runtime.model.decoder import Decoder
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.native.decoder import NativeDecoder
from stoker_runtime.model.native.library import Kernels, find_kernels
from stoker_runtime.model.runner import AnyDecoder

BLOCK_SIZE = 16
NUM_BLOCKS = 40
DTYPES = [torch.float32, torch.bfloat16]
# How far two right ways to compute logits of about 5 may differ: some units in the last place of each layer.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.1}

Part = tuple[Sequence[int], int, Sequence[int]]  # tokens, tokens computed before, blocks


def kernels_for(dtype: torch.dtype, num_threads: int = 2) -> Kernels:
    """The kernels for a dtype; skips the test where this machine has none."""
    kernels = find_kernels(dtype, num_threads)
    if kernels is None:
        pytest.skip(f"no kernels for {dtype} on this machine")
    return kernels


class Model:
    """A small model, loaded once for the kernels and once for PyTorch; `fields` are its config's."""

    def __init__(
        self,
        folder: Path,
        family: str,
        dtype: torch.dtype,
        monkeypatch: pytest.MonkeyPatch,
        num_threads: int = 2,
        **fields: object,
    ) -> None:
        kernels_for(dtype).close()
        if not (folder / "config.json").exists():
            write_model(folder, family, 0, **fields)
        name: Dtype = "float32" if dtype == torch.float32 else "bfloat16"
        config = EngineConfig(
            model=str(folder), device="cpu", dtype=name, num_threads=num_threads, kv_cache_bytes=1 << 22
        )
        self.native = self._decoder(config)
        with monkeypatch.context() as patch:
            patch.setattr(loader, "find_kernels", lambda *_: None)
            self.plain = self._decoder(config)
        assert isinstance(self.native, NativeDecoder)
        assert isinstance(self.plain, Decoder)

    def _decoder(self, config: EngineConfig) -> AnyDecoder:
        runner = loader.load_runner(config)
        return runner.decoder  # type: ignore[attr-defined, no-any-return]

    def cache(self, num_blocks: int = NUM_BLOCKS) -> KVCache:
        """An empty KV cache for either."""
        architecture = self.native.architecture
        return KVCache(architecture, num_blocks, BLOCK_SIZE, self.native.dtype, torch.device("cpu"))


def plan(*parts: Part) -> StepPlan:
    """Return a step of requests that all sample."""
    return StepPlan(
        [
            ScheduledRequest(
                request_id=f"request-{index}",
                token_ids=list(token_ids),
                num_computed_tokens=computed,
                block_ids=list(block_ids),
                samples=True,
                sampling=make_sampling(),
                seed=0,
                prompt_token_ids=[],
                output_token_ids=[],
            )
            for index, (token_ids, computed, block_ids) in enumerate(parts)
        ]
    )


def tokens(count: int, seed: int) -> list[int]:
    """Some token ids."""
    return [(seed * 37 + 11 * i + i * i) % VOCAB_SIZE for i in range(count)]


def logits_of(decoder: AnyDecoder, cache: KVCache, *plans: StepPlan) -> Tensor:
    """Compute steps one after the other and return all their logits."""
    with torch.inference_mode():
        return torch.cat([decoder(step, cache) for step in plans])
