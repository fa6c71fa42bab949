"""Calls over a network, again after a moment when that may help."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from stoker_runtime.errors import StokerError
from stoker_runtime.sources.disk import first_line

logger = logging.getLogger(__name__)

ATTEMPTS = 5
T = TypeVar("T")


def retry(
    call: Callable[[], T],
    model: str,
    explain: Callable[[BaseException], StokerError],
    is_transient: Callable[[BaseException], bool],
    sleep: Callable[[float], None],
) -> T:
    """Call until it works, at most five times, with twice the wait each time.

    Args:
        call: what is tried.
        model: the source as the user knows it.
        explain: turns what it raised into what is raised in the end.
        is_transient: whether the same call may succeed a moment later.
        sleep: waits between attempts, in seconds.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except StokerError:
            raise
        except Exception as error:  # the libraries, their HTTP clients and Rust parts share no base class
            if not is_transient(error) or attempt == ATTEMPTS:
                raise explain(error) from error
            wait_s = float(2 ** (attempt - 1))
            logger.warning(
                "download interrupted, trying again",
                extra={"model": model, "attempt": attempt, "wait_s": wait_s, "cause": first_line(error)},
            )
            sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")
