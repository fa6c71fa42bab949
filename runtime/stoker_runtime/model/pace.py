"""How many prompt tokens may join a step in which others decode, measured on the machine that computes them.

What a decode costs is how fast memory delivers the weights, what a prompt token costs is arithmetic, and CPUs
differ in the ratio of the two by a factor of three.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.messages import SamplingParams

logger = logging.getLogger(__name__)

_NUM_DECODES = 8
_CONTEXT = 127  # tokens before each decode's
_CHUNK = 32  # prompt tokens that are timed
_STRETCH = 1.8  # of a step of so many decodes, by the prompt tokens that join it
_LEAST, _MOST = 16, 64  # what is believed of a measurement on a machine that may be busy
_LONG_S = 0.2  # a step that takes so long is timed once
_NUM_RUNS = 5  # at most
_AGREEMENT = 1.05  # of the two shortest runs: then nothing disturbed them, and more would tell no more


def prefill_beside_decodes(
    step: Callable[[StepPlan], object],
    block_size: int,
    capacity: int,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Time a few steps and return how many prompt tokens make a step of 8 decodes 1.8 times as long.

    Args:
        step: computes a plan; what it leaves in the first blocks of the cache does not matter.
        block_size: tokens per KV block.
        capacity: tokens that one request may have.
        clock: seconds.

    Returns:
        Tokens, 16 to 64; 0 when requests are too short to tell.
    """
    if capacity <= _CONTEXT + 1:
        return 0
    decodes = [_request(f"decode-{index}", 1, _CONTEXT, block_size) for index in range(_NUM_DECODES)]
    chunk = _request("chunk", _CHUNK, 0, block_size)
    decode_s = _time(step, StepPlan(decodes), clock)
    both_s = _time(step, StepPlan([*decodes, chunk]), clock)
    token_s = max(both_s - decode_s, 1e-9) / _CHUNK
    found = max(_LEAST, min(_MOST, round((_STRETCH - 1) * decode_s / token_s)))
    logger.info(
        "up to %d prompt tokens join a step that decodes",
        found,
        extra={"decode_ms": round(1e3 * decode_s, 2), "token_ms": round(1e3 * token_s, 3)},
    )
    return found


def _time(step: Callable[[StepPlan], object], plan: StepPlan, clock: Callable[[], float]) -> float:
    """Return the shortest of a few runs, which is what a step takes on a machine that does nothing else."""
    times: list[float] = []
    while len(times) < _NUM_RUNS and not _is_settled(times):
        started_s = clock()
        step(plan)
        times.append(clock() - started_s)
    return min(times)


def _is_settled(times: Sequence[float]) -> bool:
    if len(times) < 2:
        return bool(times) and times[0] > _LONG_S
    shortest, second = sorted(times)[:2]
    return second <= shortest * _AGREEMENT or times[-1] > _LONG_S


def _request(name: str, num_tokens: int, num_computed: int, block_size: int) -> ScheduledRequest:
    return ScheduledRequest(
        request_id=name,
        token_ids=[0] * num_tokens,
        num_computed_tokens=num_computed,
        block_ids=list(range(-(-(num_computed + num_tokens) // block_size))),
        samples=True,
        sampling=SamplingParams(max_tokens=1, temperature=0.0),
        seed=0,
        prompt_token_ids=[0] * num_tokens,
        output_token_ids=[],
    )
