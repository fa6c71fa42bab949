"""Slows down what somebody else undoes again and again: another controller, or an admission webhook."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from stoker_operator.api.labels import APPLIED_HASH
from stoker_operator.plan.actions import Action, Apply, StopServing
from stoker_operator.retry import Backoff


@dataclass(frozen=True)
class _Done:
    """What was written last, how often in a row, and when (seconds)."""

    what: str
    count: int
    at_s: float


class Pace:
    """Remembers writes that bring an object to a state: to repeat one soon means that somebody undid it.

    Args:
        backoff: between the same writes in a row; they are forgotten after twice the longest.
        now: monotonic time in seconds.
    """

    def __init__(self, backoff: Backoff, now: Callable[[], float]) -> None:
        self._backoff = backoff
        self._now = now
        self._last: OrderedDict[tuple[str, ...], _Done] = OrderedDict()

    def wait_s(self, namespace: str, action: Action) -> float:
        """How long an action has to wait; 0 for what was not done lately."""
        identity, what = _identity(namespace, action)
        last = self._last.get(identity)
        if last is None or last.what != what:
            return 0.0
        return max(0.0, last.at_s + self._backoff.delay_s(last.count, 0.0) - self._now())

    def done(self, namespace: str, action: Action) -> None:
        """An action was carried out."""
        identity, what = _identity(namespace, action)
        if not identity:
            return
        now, last = self._now(), self._last.pop(identity, None)
        is_repeated = last is not None and last.what == what and not self._is_over(last, now)
        self._last[identity] = _Done(what, last.count + 1 if last and is_repeated else 1, now)
        while self._is_over(next(iter(self._last.values())), now):
            self._last.popitem(last=False)

    def _is_over(self, done: _Done, now: float) -> bool:
        return now - done.at_s > 2 * self._backoff.max_s


def _identity(namespace: str, action: Action) -> tuple[tuple[str, ...], str]:
    """What an action writes to, and what; nothing for pods that come and go, which nobody can bring back."""
    match action:
        case Apply(manifest=manifest):
            metadata = manifest["metadata"]
            return (namespace, manifest["kind"], metadata["name"]), metadata["annotations"][APPLIED_HASH]
        case StopServing(uid=uid):
            return (uid,), ""
    return (), ""
