"""Pods that came back from the API server unfit to serve, and were deleted again: when to try the next."""

from collections.abc import Callable
from dataclasses import dataclass

from stoker_operator.api.labels import REVISION
from stoker_operator.observed import Refusal
from stoker_operator.plan.actions import CreatePod
from stoker_operator.reconcile.caches import Key
from stoker_operator.retry import Backoff

# Each try is two writes, and each is an Event of the pod that would start the next at once.
TRY_AGAIN = Backoff(first_s=5.0, max_s=60.0, jitter=0.0)


@dataclass(frozen=True)
class _Last:
    """The newest try of a ModelDeployment: of which revision, how many in a row, when (seconds)."""

    revision: str
    count: int
    at_s: float
    refusal: Refusal


class TakenBack:
    """What became of the newest tries.

    Args:
        now: monotonic time in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last: dict[Key, _Last] = {}

    def held(self, key: Key, action: CreatePod) -> tuple[float, Refusal] | None:
        """Return how many seconds a creation has to wait, and why; None when it may be tried."""
        last = self._last.get(key)
        if last is None or last.revision != _revision(action):
            return None
        wait_s = last.at_s + TRY_AGAIN.delay_s(last.count, 0.0) - self._now()
        return (wait_s, last.refusal) if wait_s > 0 else None

    def note(self, key: Key, action: CreatePod, refusal: Refusal) -> None:
        """A created pod was taken back."""
        now, revision, last = self._now(), _revision(action), self._last.get(key)
        count = last.count + 1 if last is not None and last.revision == revision else 1
        self._last = {other: found for other, found in self._last.items() if not _is_over(found, now)}
        self._last[key] = _Last(revision, count, now, refusal)

    def forget(self, key: Key) -> None:
        """A created pod is as it should be, or nobody wants one any more."""
        self._last.pop(key, None)


def _revision(action: CreatePod) -> str:
    return str(action.manifest["metadata"]["labels"][REVISION])


def _is_over(last: _Last, now: float) -> bool:
    return now - last.at_s > 2 * TRY_AGAIN.max_s
