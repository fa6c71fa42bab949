"""When a write may be tried: the one owner of "when again", whatever wakes a ModelDeployment meanwhile.

A pass runs whenever something happened, and each pass plans the same write again as long as it is wanted. So
what was refused, what failed, and what somebody undoes must each have a due time that no event shortens:

- Each write backs off by itself. All creations of pods of one revision count as one write.
- Over that, the writes of one ModelDeployment that brought nothing about have a limit for each minute, those
  of its status among them.
- A status whose counts and answers changed is written at once; other words a few times a minute, and so is
  what it said a moment ago; the same words in other digits, such as a refusal's own id, twice a minute.

Pure but for its memory: time is what ``now`` says.
"""

import re
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from stoker_operator.api.labels import APPLIED_HASH, REVISION
from stoker_operator.observed import Failure, Refusal
from stoker_operator.plan.actions import Action, Adopt, Apply, Create, Delete, Patch
from stoker_operator.retry import Backoff
from stoker_operator.status import Change

Key = tuple[str, str]

# Nothing tells us when a quota grew or a policy changed. The first looks come soon: in a new namespace pods
# are refused for the moment until its service account is there.
REFUSED = Backoff(first_s=0.5, max_s=15.0, jitter=0.0, factor=4.0)
# An error of the server, or no answer: most are over in a moment, the others last for minutes.
FAILED = Backoff(first_s=0.05, max_s=30.0, jitter=0.0, factor=4.0)
# A write that somebody undoes would be repeated for ever, as fast as both can.
UNDONE = Backoff(first_s=0.01, max_s=30.0, jitter=0.0, factor=4.0)

MINUTE_S = 60.0
# For each ModelDeployment and minute. The sum, failed statuses included, leaves room for the Events that go
# with them. A status stops sooner: to make a pod is worth more than to say that it cannot be made.
MAX_FRUITLESS, MAX_IN_SUM, MAX_WITH_STATUS = 7, 10, 8
MAX_TEXTS = 4
SAME_WORDS_S = 30.0
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
# A row of failures is over when the last of them was so long ago.
FORGET_S = 120.0


@dataclass(frozen=True)
class _Record:
    """The last try of one write.

    Args:
        kind: of write, as in "create Pod".
        what: its content.
        count: tries in a row.
        at_s: when it was.
        due_s: when the next may be.
        since_s: when the row of troubles began.
        trouble: why it was not done; None when it was.
    """

    kind: str
    what: str
    count: int
    at_s: float
    due_s: float
    since_s: float
    trouble: Refusal | Failure | None = None


@dataclass
class _History:
    """What one ModelDeployment has tried lately."""

    records: dict[Hashable, _Record] = field(default_factory=dict)
    fruitless: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_FRUITLESS))
    in_sum: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_IN_SUM))
    texts: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_TEXTS))
    said: dict[str, float] = field(default_factory=dict)  # words of statuses, and when they were written
    status: _Record | None = None


class Pace:
    """Remembers the tries of all ModelDeployments.

    Args:
        now: monotonic time in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._histories: dict[Key, _History] = {}

    def forget(self, key: Key) -> None:
        """The ModelDeployment is gone."""
        self._histories.pop(key, None)

    def wait_s(self, key: Key, action: Action) -> float:
        """Seconds until an action may be tried; 0 for what had no trouble lately."""
        history, now = self._history(key), self._now()
        identity, what = _identity(action)
        record = history.records.get(identity)
        if record is not None and record.what == what and _left_s(record.due_s, now):
            return _left_s(record.due_s, now)
        kind = kind_of(action)
        is_tried_again = any(
            # Pods follow an edit, and a person who corrects something need not wait; children follow pods.
            other.kind == kind and (name != identity or other.what == what or isinstance(action, Apply))
            for name, other in history.records.items()
            if other.trouble is not None or other.count > 1
        )
        if not is_tried_again:
            return 0.0
        return max(_slot_s(history.fruitless, now), _slot_s(history.in_sum, now))

    def tried_at_s(self, key: Key, action: Action) -> float:
        """When an action was tried last; of several of a kind, the one that waits longest should be next."""
        record = self._history(key).records.get(_identity(action)[0])
        return 0.0 if record is None else record.at_s

    def trouble(self, key: Key, action: Action) -> Refusal | Failure | None:
        """Why the last try of an action came to nothing; None when it did not, or when nothing was tried."""
        identity, what = _identity(action)
        record = self._history(key).records.get(identity)
        return None if record is None or record.what != what else record.trouble

    def trouble_s(self, key: Key, action: Action) -> float:
        """For how many seconds an action has had trouble."""
        record = self._history(key).records.get(_identity(action)[0])
        return 0.0 if record is None or record.trouble is None else self._now() - record.since_s

    def done(self, key: Key, action: Action) -> None:
        """An action was carried out."""
        history, now = self._history(key), self._now()
        identity, what = _identity(action)
        last = history.records.pop(identity, None)
        if isinstance(action, Create | Delete):
            return  # nobody can bring back what was there
        is_undone = last is not None and last.trouble is None and last.what == what
        count = last.count + 1 if last is not None and is_undone else 1
        if is_undone:
            history.fruitless.append(now)
            history.in_sum.append(now)
        due_s = now + UNDONE.delay_s(count, 0.0)
        history.records[identity] = _Record(kind_of(action), what, count, now, due_s, now)

    def failed(
        self,
        key: Key,
        action: Action,
        trouble: Refusal | Failure,
        at_least_s: float = 0.0,
        num_writes: int = 1,
    ) -> None:
        """An action was refused or failed.

        Args:
            key: whose it is.
            action: what was tried.
            trouble: why it was not done.
            at_least_s: how long the server asked to wait.
            num_writes: how many calls the try was.
        """
        history = self._history(key)
        identity, what = _identity(action)
        last = history.records.get(identity)
        history.records[identity] = self._next(kind_of(action), last, what, trouble, at_least_s)
        history.fruitless.extend([self._now()] * num_writes)
        history.in_sum.extend([self._now()] * num_writes)

    def status_wait_s(self, key: Key, change: Change, words: str) -> float:
        """Seconds until a status may be written.

        Args:
            key: whose status.
            change: how it differs from the stored one.
            words: what it says, digits aside.
        """
        history, now = self._history(key), self._now()
        last = history.status
        if last is not None and (last.what == words or last.trouble is not None) and _left_s(last.due_s, now):
            return _left_s(last.due_s, now)
        if last is not None and last.trouble is not None and _slot_s(history.in_sum, now, MAX_WITH_STATUS):
            return _slot_s(history.in_sum, now, MAX_WITH_STATUS)
        said_s = now - history.said.get(words, -MINUTE_S)
        if change is Change.PROGRESS:
            # Back to what was a moment ago: pods that flap. Once or twice that is news, not for ever.
            return _slot_s(history.texts, now) if said_s < MINUTE_S else 0.0
        return max(_left_s(now + SAME_WORDS_S - said_s, now), _slot_s(history.texts, now))

    def status_written(self, key: Key, change: Change, words: str) -> None:
        """A status was written."""
        history, now = self._history(key), self._now()
        last = history.status
        is_repeated = last is not None and last.trouble is None and last.what == words
        count = last.count + 1 if last is not None and is_repeated else 1
        due_s = now + UNDONE.delay_s(count, 0.0)
        history.status = _Record("status", words, count, now, due_s, now)
        if change is not Change.PROGRESS or now - history.said.get(words, -MINUTE_S) < MINUTE_S:
            history.texts.append(now)
        history.said[words] = now

    def status_failed(self, key: Key, words: str, trouble: Failure, at_least_s: float = 0.0) -> float:
        """A status could not be written; returns seconds until it may be tried again."""
        history = self._history(key)
        last = history.status
        record = self._next("status", last, words, trouble, at_least_s)
        history.status = record
        history.in_sum.append(self._now())
        return max(record.due_s - self._now(), _slot_s(history.in_sum, self._now(), MAX_WITH_STATUS))

    def _next(
        self, kind: str, last: _Record | None, what: str, trouble: Refusal | Failure, at_least_s: float
    ) -> _Record:
        now = self._now()
        # A status is refused as a whole, whatever it says.
        is_row = last is not None and last.trouble is not None and (last.what == what or kind == "status")
        count, since_s = (last.count + 1, last.since_s) if last is not None and is_row else (1, now)
        backoff = REFUSED if isinstance(trouble, Refusal) else FAILED
        due_s = now + max(at_least_s, backoff.delay_s(count, 0.0))
        return _Record(kind, what, count, now, due_s, since_s, trouble)

    def _history(self, key: Key) -> _History:
        """The history of a ModelDeployment, without what is too old to matter."""
        history, before_s = self._histories.setdefault(key, _History()), self._now() - FORGET_S
        if any(record.at_s < before_s for record in history.records.values()):
            history.records = {
                name: record for name, record in history.records.items() if record.at_s >= before_s
            }
        if any(at_s < before_s for at_s in history.said.values()):
            history.said = {text: at_s for text, at_s in history.said.items() if at_s >= before_s}
        if history.status is not None and history.status.at_s < before_s:
            history.status = None
        return history


def kind_of(action: Action) -> str:
    """The kind of write that an action is: what is refused to one is likely refused to all of its kind."""
    match action:
        case Create(kind=kind):
            return f"create {kind}"
        case Patch(kind=kind, purpose=purpose):
            return f"{purpose.value} {kind}"
        case Delete(kind=kind):
            return f"delete {kind}"
        case Apply(kind=kind):
            return f"apply {kind}"
        case Adopt(kind=kind):
            return f"adopt {kind}"


def _identity(action: Action) -> tuple[Hashable, str]:
    """What an action writes to, and what it writes there."""
    match action:
        case Create(kind=kind, manifest=manifest):
            return ("create", kind), manifest["metadata"]["labels"][REVISION]
        case Apply(kind=kind, name=name, manifest=manifest):
            return (kind, name), manifest["metadata"]["annotations"][APPLIED_HASH]
        case Patch(uid=uid, purpose=purpose, body=body):
            return (purpose, uid), _TIME.sub("", repr(body))  # with another time, it is the same patch
        case Delete(uid=uid):
            return ("delete", uid), ""
        case Adopt(uid=uid):
            return ("adopt", uid), ""


def _slot_s(times: deque[float], now: float, most: int | None = None) -> float:
    """Seconds until another one fits into a minute of so many, or of as many as are remembered."""
    most = most or times.maxlen or 1
    return _left_s(times[-most] + MINUTE_S, now) if len(times) >= most else 0.0


def _left_s(due_s: float, now: float) -> float:
    """Seconds until then; what rounding leaves of a time that has come is nothing to wait for."""
    return due_s - now if due_s - now > 1e-3 else 0.0
