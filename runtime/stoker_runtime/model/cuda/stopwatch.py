"""How long a device takes for something, measured within bounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Run = Callable[[], object]
Stopwatch = Callable[[Run], float]  # runs something once and returns its seconds
Clock = Callable[[], float]

_UNKNOWN_CACHE_BYTES = 64 << 20
_HEAD_START = 8  # times that the cache is overwritten: longer than the host needs for some ten launches


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one measurement.

    Args:
        most_repeats: odd, so that one of them is the median.
        most_seconds: of the host's clock, after which no repeat begins but the first.
    """

    most_repeats: int = 15
    most_seconds: float = 0.5


LIMITS = Limits()


@contextmanager
def stopwatch_on(device: torch.device) -> Iterator[Stopwatch]:
    """Yield what measures on a device; the memory that measurements took is given back afterwards."""
    if device.type != "cuda":
        yield _time_on_host
        return
    stopwatch = _EventStopwatch(device)
    yield stopwatch
    stopwatch.forget()
    torch.cuda.empty_cache()


def median_seconds(run: Run, stopwatch: Stopwatch, clock: Clock, limits: Limits = LIMITS) -> float:
    """Return the median of some repeats. Whoever calls has run it before, so that it is compiled."""
    end = clock() + limits.most_seconds
    times = [stopwatch(run)]
    while len(times) < limits.most_repeats and clock() < end:
        times.append(stopwatch(run))
    return statistics.median(times)


def _time_on_host(run: Run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


class _EventStopwatch:
    """Times kernels by the device's own clock, with nothing of theirs in its cache, as between two layers.

    While the device overwrites its cache the host launches what is measured, so launches are not counted.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cold: torch.Tensor | None = None

    def __call__(self, run: Run) -> float:
        if self._cold is None:
            properties = torch.cuda.get_device_properties(self._device)
            num_bytes = 2 * (getattr(properties, "L2_cache_size", 0) or _UNKNOWN_CACHE_BYTES)
            self._cold = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        for _ in range(_HEAD_START):
            self._cold.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def forget(self) -> None:
        """Let go of the memory."""
        self._cold = None
