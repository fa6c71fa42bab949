"""Steps that nobody asked for, to compare and to measure kernels with."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.messages import SamplingParams
from stoker_runtime.model.cuda.step_layout import PackedStep, pack


@dataclass(frozen=True, slots=True)
class SampleStep:
    """A step laid out for the kernels.

    Args:
        packed: on the host.
        views: its fields on the device.
        num_slots: of the cache that it reads and writes.
    """

    packed: PackedStep
    views: Mapping[str, Tensor]
    num_slots: int


def sample_plan(
    spans: Sequence[tuple[int, int]], block_size: int, is_scattered: bool = False
) -> tuple[StepPlan, int]:
    """Return a plan and how many slots of a cache it takes.

    Args:
        spans: each request's tokens that were computed before, and those that it computes.
        block_size: tokens per KV block.
        is_scattered: no block lies beside the one before, as in a cache that has been used for a while.
    """
    counts = [-(-(computed + count) // block_size) for computed, count in spans]
    blocks = list(range(sum(counts)))
    if is_scattered:
        random.Random(0).shuffle(blocks)
    requests = []
    for index, (computed, count) in enumerate(spans):
        first = sum(counts[:index])
        requests.append(
            ScheduledRequest(
                request_id=f"sample-{index}",
                token_ids=[0] * count,
                num_computed_tokens=computed,
                block_ids=blocks[first : first + counts[index]],
                samples=True,
                sampling=SamplingParams(max_tokens=1),
                seed=0,
                prompt_token_ids=[],
                output_token_ids=[],
            )
        )
    return StepPlan(requests), len(blocks) * block_size


def sample_step(
    spans: Sequence[tuple[int, int]], block_size: int, tokens_per_tile: int, device: torch.device
) -> SampleStep:
    """Lay such a plan out, its blocks scattered; see sample_plan and step_layout.pack."""
    plan, num_slots = sample_plan(spans, block_size, is_scattered=True)
    packed = pack(plan, block_size, tokens_per_tile)
    fields = packed.fields.items()
    views = {name: torch.from_numpy(values.copy()).to(device) for name, values in fields}
    return SampleStep(packed, views, num_slots)
