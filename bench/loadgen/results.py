"""What one request gave and what a run of them adds up to. Pure.

TTFT is the time from sending to the first text, ITL the gap between two pieces of text, TPOT the time per
output token after the first, e2e the time to the end of the answer; all in seconds. A failed request counts
nowhere but under its reason: it is never retried and never dropped.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

PERCENTILES = (50, 90, 95, 99)
_SHARE_WITH_TEXT = 0.95  # of its tokens, for an answer's gaps to be those between tokens


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request, answered or failed."""

    index: int
    started_s: float  # since the run began
    e2e_s: float
    ttft_s: float | None = None  # None: failed before the first text, or not streamed
    itl_s: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    failure: str | None = None  # a word that groups failures, such as http_503 or cut_stream
    detail: str = ""  # what exactly happened, when it failed

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None when there is no second token."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean, extremes and percentiles of one measure."""

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A run, ready for JSON."""

    requests: int
    succeeded: int
    failures: dict[str, int]
    first_failures: tuple[str, ...]  # a few details, so that a count can be acted on
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    request_per_s: float
    output_token_per_s: float
    total_token_per_s: float
    ttft_s: Distribution | None
    itl_s: Distribution | None
    tpot_s: Distribution | None
    e2e_s: Distribution | None

    def as_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists."""
        return asdict(self)


def token_gaps_s(outcomes: Iterable[Outcome]) -> Iterator[tuple[float, float]]:
    """Yield (time of its end since the run began, gap) for each gap between two tokens.

    Some tokens have no text: a special one, and one that ends within a character, which a server holds back
    until the character is whole. The gaps of an answer with many of those lie between several tokens; it is
    left out.
    """
    for outcome in outcomes:
        if outcome.ttft_s is None or len(outcome.itl_s) + 1 < _SHARE_WITH_TEXT * outcome.output_tokens:
            continue
        at_s = outcome.started_s + outcome.ttft_s
        for gap_s in outcome.itl_s:
            at_s += gap_s
            yield at_s, gap_s


def distribution(values: Iterable[float]) -> Distribution | None:
    """Return the distribution of the values, percentiles interpolated; None when there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    cuts = ordered * 99 if len(ordered) == 1 else statistics.quantiles(ordered, n=100, method="inclusive")
    p50, p90, p95, p99 = (cuts[percentile - 1] for percentile in PERCENTILES)
    mean = statistics.fmean(ordered)
    return Distribution(len(ordered), mean, ordered[0], p50, p90, p95, p99, ordered[-1])


def summarize(outcomes: Sequence[Outcome], duration_s: float) -> Summary:
    """Add up a run.

    Args:
        outcomes: every request that was started, failed ones too.
        duration_s: from the first request's start to the last one's end.
    """
    good = [outcome for outcome in outcomes if outcome.failure is None]
    bad = [outcome for outcome in outcomes if outcome.failure is not None]
    prompt_tokens = sum(outcome.prompt_tokens for outcome in good)
    output_tokens = sum(outcome.output_tokens for outcome in good)

    def per_s(amount: float) -> float:
        return amount / duration_s if duration_s > 0 else 0.0

    return Summary(
        requests=len(outcomes),
        succeeded=len(good),
        failures=dict(Counter(outcome.failure or "" for outcome in bad)),
        first_failures=tuple(f"#{bad_.index}: {bad_.failure}: {bad_.detail}" for bad_ in bad[:10]),
        duration_s=duration_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        request_per_s=per_s(len(good)),
        output_token_per_s=per_s(output_tokens),
        total_token_per_s=per_s(prompt_tokens + output_tokens),
        ttft_s=distribution(good_.ttft_s for good_ in good if good_.ttft_s is not None),
        itl_s=distribution(gap for good_ in good for gap in good_.itl_s),
        tpot_s=distribution(good_.tpot_s for good_ in good if good_.tpot_s is not None),
        e2e_s=distribution(good_.e2e_s for good_ in good),
    )


def table(summaries: dict[str, Summary]) -> str:
    """Return named summaries as a text table, times in milliseconds (p50/p99)."""
    head = ("run", "ok", "failed", "out tok/s", "TTFT ms", "ITL ms", "TPOT ms", "e2e ms")
    rows: list[tuple[str, ...]] = [head]
    for name, run in summaries.items():
        times = tuple(_p50_p99_ms(d) for d in (run.ttft_s, run.itl_s, run.tpot_s, run.e2e_s))
        failed = run.requests - run.succeeded
        rows.append((name, str(run.succeeded), str(failed), f"{run.output_token_per_s:.1f}", *times))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _p50_p99_ms(values: Distribution | None) -> str:
    return "-" if values is None else f"{values.p50 * 1e3:.0f}/{values.p99 * 1e3:.0f}"
