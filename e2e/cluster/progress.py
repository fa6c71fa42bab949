"""Progress lines on standard error, each with the time it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(text: str) -> None:
    """Print one line at once, also when the output is a file."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step and say how long it took, or that it failed."""
    say(f"  · {title}")
    start = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"  ✗ {title} after {time.monotonic() - start:.1f} s")
        raise
    say(f"  ✓ {title} in {time.monotonic() - start:.1f} s")
