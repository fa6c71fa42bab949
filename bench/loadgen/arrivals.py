"""When requests start. Pure: randomness comes from the seed, time is counted from the start of the run."""

from __future__ import annotations

import random
from collections.abc import Iterator


def poisson(rate_per_s: float, seed: int) -> Iterator[float]:
    """Yield the start times of an open loop, in seconds since the run began, without end.

    Args:
        rate_per_s: mean number of requests per second, > 0.
        seed: the same seed gives the same times.

    Raises:
        ValueError: the rate is not positive.
    """
    if rate_per_s <= 0:
        raise ValueError(f"rate {rate_per_s} must be positive")
    rng = random.Random(seed)
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate_per_s)
        yield at_s
