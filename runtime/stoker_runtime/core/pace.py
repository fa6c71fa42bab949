"""How many prompt tokens may join a step in which others decode: learnt from what steps have taken. Pure.

What a decode costs is how fast memory delivers the weights, what a prompt token costs is arithmetic. CPUs
differ in the ratio of the two by a factor of three, one CPU at two times of day by nearly two, and whoever
else uses its cores counts as well: so it is not measured once, but followed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

LEAST, MOST = 16, 64  # tokens; whatever the clock says, prompts go on and decodes are not held up
_NUM_SAMPLES = 9  # steps that are remembered; their median counts, so a few disturbed ones do not
_GROWTH = 1.5  # times as many tokens as were seen: what a token costs is no constant, least of all for few


def _samples() -> deque[float]:
    return deque(maxlen=_NUM_SAMPLES)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the last steps with a number of decodes have shown, in seconds and tokens."""

    alone_s: deque[float] = field(default_factory=_samples)
    token_s: deque[float] = field(default_factory=_samples)
    num_tokens: deque[float] = field(default_factory=_samples)  # in the steps of token_s


class PrefillPace:
    """Follows the steps of one engine.

    Args:
        first: tokens while nothing is known.
        stretch: what prompts may make of a step's time, in percent of what it takes with its decodes alone.
        max_decodes: steps with more are not followed.
    """

    def __init__(self, first: int, stretch: int, max_decodes: int) -> None:
        self._first = first
        self._share = stretch / 100 - 1
        self._max_decodes = max_decodes
        self._known: dict[int, _Known] = {}  # by number of decodes

    def tokens(self, num_decodes: int) -> int:
        """Return how many may join a step of so many decodes."""
        numbers = [number for number, known in self._known.items() if known.token_s]
        if not numbers:
            return self._first
        # Where such a step was never seen, the one that comes next to it stands for it.
        known = self._known[min(numbers, key=lambda number: abs(number - num_decodes))]
        most = min(MOST, _GROWTH * median(known.num_tokens))
        token_s, spare_s = median(known.token_s), self._share * median(known.alone_s)
        return max(LEAST, round(min(most, spare_s / token_s) if token_s > 0 else most))

    def observe(self, num_decodes: int, num_prompt_tokens: int, duration_s: float) -> None:
        """Take in what a step took.

        Args:
            num_decodes: at least 1.
            num_prompt_tokens: as they count, see Budgets.context_price.
            duration_s: of the whole step.
        """
        if num_decodes > self._max_decodes:
            return
        known = self._known.setdefault(num_decodes, _Known())
        if not num_prompt_tokens:
            known.alone_s.append(duration_s)
        elif known.alone_s and num_prompt_tokens >= LEAST // 2:  # of fewer the clock's noise is larger
            known.token_s.append(max(0.0, duration_s - median(known.alone_s)) / num_prompt_tokens)
            known.num_tokens.append(num_prompt_tokens)
