"""What is left open until a device has been measured, and how measured times decide. Pure: no tensors.

A choice has named candidates that compute the same thing. The first is the default: what is taken without a
measurement, and with one unless another candidate is faster by a margin, so that noise decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

MARGIN = 0.05  # of the default's time that another candidate has to save
FEWEST_MANY_ROWS = 17  # up to one tile of 16 rows nothing is gained by more than reading codes


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be chosen.

    Args:
        name: of what is computed.
        signature: what the answer depends on besides the device and the code, such as shapes and dtypes.
        candidates: one at least, the default first.
    """

    name: str
    signature: str
    candidates: tuple[str, ...]

    @property
    def default(self) -> str:
        """What is taken unless another is known to be faster."""
        return self.candidates[0]


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen, and why.

    Args:
        choice: what was to be chosen.
        taken: one of its candidates.
        seconds: median time of each candidate that was measured.
        excluded: why each of the others was not.
    """

    choice: Choice
    taken: str
    seconds: dict[str, float] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)


def pick(choice: Choice, seconds: Mapping[str, float], margin: float = MARGIN) -> str:
    """Return the fastest candidate, or the default unless that is slower by more than the margin.

    Args:
        choice: between its candidates.
        seconds: times of those that may be taken; without one of the default there is nothing to compare.
        margin: share of the default's time.
    """
    if choice.default not in seconds:
        return choice.default
    fastest = min((name for name in choice.candidates if name in seconds), key=lambda name: seconds[name])
    return fastest if seconds[fastest] < seconds[choice.default] * (1 - margin) else choice.default


def is_sound(decision: Decision) -> bool:
    """Tell whether a decision that was read from somewhere is one that measurements can have led to."""
    candidates = decision.choice.candidates
    return (
        decision.taken in candidates
        and all(
            name in candidates and 0 < seconds < float("inf") for name, seconds in decision.seconds.items()
        )
        and decision.taken == pick(decision.choice, decision.seconds)
    )


def many_rows(is_dequantized: Mapping[int, bool]) -> int:
    """Return from how many rows on a weight is dequantized for a product.

    Args:
        is_dequantized: by measured number of rows, whether that is what was chosen for it.

    Returns:
        One more than the largest number of rows up to which it never is: one more than the last number
        measured where it is never chosen, FEWEST_MANY_ROWS where it is chosen for the first.
    """
    found = FEWEST_MANY_ROWS
    for rows, is_chosen in sorted(is_dequantized.items()):
        if is_chosen:
            break
        found = rows + 1
    return found


def summary(decisions: Iterable[Decision], known: Sequence[Choice] = ()) -> str:
    """Return decisions as one line: what was taken, and the times that led to it.

    Args:
        decisions: in the order of the line.
        known: those that were measured by an earlier start.
    """
    return "; ".join(phrase(decision, decision.choice in known) for decision in decisions)


def phrase(decision: Decision, is_known: bool = False) -> str:
    """Return one decision as text; is_known: it was measured by an earlier start."""
    times = [f"{name}: {seconds * 1e3:.3f} ms" for name, seconds in decision.seconds.items()]
    details = ", ".join([*times, *(f"{name}: {reason}" for name, reason in decision.excluded.items())])
    origin = "measured before: " if is_known else ""
    return f"{decision.choice.name}: {decision.taken} ({origin}{details or 'not measured'})"
