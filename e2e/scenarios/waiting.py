"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.2


def eventually(
    what: str,
    probe: Callable[[], T | None],
    timeout_s: float,
    explain: Callable[[], object] = str,
    poll_s: float = POLL_S,
) -> T:
    """Call `probe` until it returns something true, and return that.

    Args:
        what: names the condition in the failure.
        probe: looks once.
        timeout_s: how long to go on looking.
        explain: called when time is up; what it returns joins the failure.
        poll_s: seconds between looks.

    Raises:
        AssertionError: time is up.
    """
    deadline = time.monotonic() + timeout_s
    never = threading.Event()
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}. {explain()}".rstrip())
        never.wait(poll_s)
