"""Measures the candidates of choices, or knows what was measured before; takes defaults where both fail."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from stoker_runtime.model.cuda.choices import Choice, Decision, pick
from stoker_runtime.model.cuda.stopwatch import LIMITS, Clock, Limits, Stopwatch, median_seconds

# Compiling a candidate takes a second or some, once for each version: Triton keeps what it compiled.
MOST_SECONDS = 45.0
_OUT_OF_MEMORY, _OUT_OF_TIME = "out of memory", "no time was left to measure it"

Way = Callable[[], Tensor]  # computes what is compared; may write it into the same tensor each time

logger = logging.getLogger(__name__)


class Chooser:
    """Takes decisions one by one.

    Args:
        stopwatch: of the device.
        known: decisions of earlier starts.
        clock: of the host.
        most_seconds: after which nothing more is measured.
        limits: of one candidate.
    """

    def __init__(
        self,
        stopwatch: Stopwatch,
        known: Iterable[Decision] = (),
        clock: Clock = time.monotonic,
        most_seconds: float = MOST_SECONDS,
        limits: Limits = LIMITS,
    ) -> None:
        self.decisions: list[Decision] = []
        self.measured: list[Decision] = []  # those that a later start may rely on
        self.known: list[Choice] = []  # those that this one relied on
        self._known = {decision.choice: decision for decision in known}
        self._stopwatch, self._clock, self._limits = stopwatch, clock, limits
        self._end = clock() + most_seconds

    def choose(self, choice: Choice, prepare: Callable[[], Mapping[str, Way]], tolerance: float) -> str:
        """Return a candidate.

        Args:
            choice: between its candidates.
            prepare: makes what each of them runs; called only where something is measured.
            tolerance: how far what one computes may be from what the default does, see `difference`.
        """
        decision = self._known.get(choice)
        if decision is not None:
            self.known.append(choice)
        else:
            decision, is_complete = self._measured(choice, prepare, tolerance)
            if is_complete:
                self.measured.append(decision)
        self.decisions.append(decision)
        return decision.taken

    def _measured(
        self, choice: Choice, prepare: Callable[[], Mapping[str, Way]], tolerance: float
    ) -> tuple[Decision, bool]:
        """Decide by measuring; and tell whether another start would measure the same."""
        if self._clock() >= self._end:
            return _undecided(choice, _OUT_OF_TIME), False
        try:
            ways = prepare()
            last = ways[choice.default]()
            expected = last.clone()
            seconds = {choice.default: self._seconds(ways[choice.default])}
        except Exception as error:  # what a device lacks has many types, and a start must not fail for it
            return _undecided(choice, _reason(error)), False
        excluded: dict[str, str] = {}
        is_complete = True
        for name in choice.candidates[1:]:
            if self._clock() >= self._end:
                excluded[name], is_complete = _OUT_OF_TIME, False
                continue
            try:
                last.fill_(float("nan"))  # a candidate that computes nothing must not find it done
                last = ways[name]()
                away = difference(last, expected)
                if away <= tolerance:  # written this way round, NaN is out
                    seconds[name] = self._seconds(ways[name])
                else:
                    excluded[name] = f"differs from {choice.default} by {away:.2g}"
            except Exception as error:
                excluded[name] = _reason(error)
                is_complete &= excluded[name] != _OUT_OF_MEMORY
        for name, reason in excluded.items():
            logger.info("%s: %s is out: %s", choice.name, name, reason)
        return Decision(choice, pick(choice, seconds), seconds, excluded), is_complete

    def _seconds(self, way: Way) -> float:
        return median_seconds(way, self._stopwatch, self._clock, self._limits)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return how far rows are from what they should be, relative to the largest number of each.

    Shapes:
        found, expected [..., N]

    Returns:
        0 only if they are equal in every bit (but for the sign of zeros); NaN where one of them has any.
    """
    away = (found.float() - expected.float()).abs().amax(dim=-1)
    largest = expected.float().abs().amax(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float((away / largest).max())


def _undecided(choice: Choice, reason: str) -> Decision:
    level = logging.INFO if reason in (_OUT_OF_MEMORY, _OUT_OF_TIME) else logging.WARNING
    logger.log(level, "%s: %s is taken without a measurement: %s", choice.name, choice.default, reason)
    return Decision(choice, choice.default, excluded={choice.default: reason})


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return _OUT_OF_MEMORY
    return f"{type(error).__name__}: {error}".splitlines()[0]
