"""How long to wait before the next try: shared by the queue, the informers and the API client; pure."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Backoff:
    """Delays between failures in a row: ``first_s * factor**n``, at most ``max_s``, shortened by jitter."""

    first_s: float = 0.05
    max_s: float = 60.0
    jitter: float = 0.2
    factor: float = 2.0

    def delay_s(self, num_failures: int, random_unit: float) -> float:
        """The wait after the n-th failure in a row.

        Args:
            num_failures: failures so far, >= 1.
            random_unit: a random number in [0, 1); spreads keys that failed together.
        """
        full = min(self.first_s * self.factor ** min(num_failures - 1, 30), self.max_s)
        return full * (1.0 - self.jitter * random_unit)


@dataclass(frozen=True)
class TokenBucket:
    """Bounds how often something happens: ``size`` times at once, then once each ``refill_s``.

    Args:
        size: tokens at most.
        refill_s: seconds in which one comes back.
        at_s: when the tokens were counted last.
        left: tokens then; less than none after more was taken than there was.
    """

    size: int
    refill_s: float
    at_s: float
    left: float = 0.0

    def tokens(self, now_s: float) -> float:
        """Tokens by now; a clock that was set back brings none and takes none."""
        return min(self.left + max(now_s - self.at_s, 0.0) / self.refill_s, self.size)

    def taken(self, now_s: float) -> "TokenBucket":
        """The bucket after one was taken."""
        return replace(self, at_s=now_s, left=self.tokens(now_s) - 1.0)


class RetryLater(Exception):
    """An error that knows how long to wait at least (a server's ``Retry-After``)."""

    retry_after_s: float = 0.0


class PassFailed(Exception):
    """A pass failed in a part that has its own due time: the queue counts it, without a back-off of its own.

    Args:
        message: what failed.
        retry_in_s: when the pass is due, seconds from now.
    """

    def __init__(self, message: str, retry_in_s: float) -> None:
        super().__init__(message)
        self.retry_in_s = retry_in_s
