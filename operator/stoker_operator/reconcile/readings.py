"""What pods say of their requests: they are asked beside the passes, which read answers and never wait.

Passes name the pods whose answers plans need, those that drain. Each of them has a task that asks it again
and again, and tells it each time that it drains: nothing is lost when this process dies after the label was
written and before the pod was told, nor when a pod's engine restarts meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from stoker_operator.cluster.inflight import InFlightReader, PodAnswer, Question, pod_addresses, pod_url
from stoker_operator.lanes import Priority
from stoker_operator.observed import Manifest, Reading
from stoker_operator.profiles import EngineProfile, LoadPage, profile_of_pod
from stoker_operator.reconcile.caches import Key

logger = logging.getLogger(__name__)

POLL_S = 1.0
# A pod that cannot be asked is asked less often: an answer is no longer what its drain is likely to end with.
SILENT_POLL_S = 5.0
# Pods that are asked at once: as many of those that did not answer the last time as of all others, so that
# however many are silent, they hold up only one another.
MAX_AT_ONCE = 32


class ReadingsObserver(Protocol):
    """Who wants to know how often pods answer (the metrics)."""

    def pod_asked(self, result: str) -> None:
        """A pod was asked: ``answered``, ``silent``, or ``error`` when we could not even do that."""


@dataclass(frozen=True)
class _Pod:
    """A pod that is asked.

    Args:
        key: of its ModelDeployment.
        questions: one for each of its addresses.
        load: where its engine tells its requests in flight.
    """

    key: Key
    questions: tuple[Question, ...]
    load: LoadPage


class Readings:
    """The last reading of each pod that a plan asked for, by uid, and the tasks that renew them.

    Args:
        reader: calls pods.
        clock: the time.
        changed: called with the key of a ModelDeployment whose plan or status a new reading may change, and
            how urgent that is.
        observer: told of every call.
        profile_of: what is known of a pod's engine.
    """

    def __init__(
        self,
        reader: InFlightReader,
        clock: Callable[[], datetime],
        changed: Callable[[Key, Priority], None],
        observer: ReadingsObserver | None = None,
        profile_of: Callable[[Manifest], EngineProfile] = profile_of_pod,
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._changed = changed
        self._observer = observer
        self._profile_of = profile_of
        self._pods: dict[str, _Pod] = {}
        self._uids: dict[Key, frozenset[str]] = {}
        self._readings: dict[str, Reading] = {}
        self._asked: set[str] = set()  # uids of pods that have a task
        self._new: asyncio.Queue[str] = asyncio.Queue()
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._silent_slots = asyncio.Semaphore(MAX_AT_ONCE)

    def of(self, key: Key) -> dict[str, Reading]:
        """The readings of a ModelDeployment's pods by uid; a pod that nobody has asked yet has none."""
        uids = self._uids.get(key, frozenset())
        return {uid: self._readings[uid] for uid in uids if uid in self._readings}

    def ask(self, key: Key, pods: Mapping[str, Manifest]) -> None:
        """Ask these pods from now on, and no others of this ModelDeployment; returns at once.

        Args:
            key: of the ModelDeployment.
            pods: by uid.
        """
        self._drop(key, self._uids.get(key, frozenset()) - pods.keys())
        for uid, pod in pods.items():
            load = self._profile_of(pod).load
            self._pods[uid] = _Pod(key, tuple(questions_to(pod, load)), load)
            if uid not in self._asked:
                self._new.put_nowait(uid)
        if pods:
            self._uids[key] = frozenset(pods)
        else:
            self._uids.pop(key, None)

    def forget(self, key: Key) -> None:
        """The ModelDeployment is gone."""
        self._drop(key, self._uids.pop(key, frozenset()))

    async def run(self) -> None:
        """Ask until cancelled."""
        for uid in self._pods:
            self._new.put_nowait(uid)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    uid = await self._new.get()
                    if uid not in self._asked:
                        self._asked.add(uid)
                        group.create_task(self._ask_again_and_again(uid), name=f"ask pod {uid}")
        finally:
            self._asked.clear()

    def _drop(self, key: Key, uids: Iterable[str]) -> None:
        for uid in uids:
            pod = self._pods.get(uid)
            # One whose label was changed is another ModelDeployment's by now.
            if pod is not None and pod.key == key:
                del self._pods[uid]
                # What it said when it drained before must not end another drain.
                self._readings.pop(uid, None)

    async def _ask_again_and_again(self, uid: str) -> None:
        is_silent = False
        while uid in self._pods:
            async with self._silent_slots if is_silent else self._slots:
                pod = self._pods.get(uid)
                reading = None if pod is None else await self._read(uid, pod)
            if reading is not None:
                self._take(uid, reading)
                is_silent = reading.num_in_flight is None
            await asyncio.sleep(SILENT_POLL_S if is_silent else POLL_S)
        self._asked.discard(uid)

    async def _read(self, uid: str, pod: _Pod) -> Reading:
        """Ask a pod once."""
        # An answer is as old as its question: what comes while it is under way may not be in it.
        asked_at = self._clock()
        try:
            num_in_flight, trouble = await self._answer(pod)
            result = "silent" if num_in_flight is None else "answered"
        except Exception as error:  # the catch-all of this room: what runs in a pod must not end the operator
            logger.exception("a pod could not be asked", extra={"key": "/".join(pod.key), "uid": uid})
            num_in_flight, trouble, result = None, f"the operator failed with {type(error).__name__}", "error"
        if self._observer is not None:
            self._observer.pod_asked(result)
        if num_in_flight is not None:
            return Reading(asked_at, num_in_flight)
        before = self._readings.get(uid)
        since = before.silent_since if before is not None else None
        return Reading(asked_at, None, trouble, since or asked_at)

    async def _answer(self, pod: _Pod) -> tuple[int | None, str]:
        """Return a pod's requests in flight, else None and why nobody knows."""
        questions = {str(number): question for number, question in enumerate(pod.questions)}
        answers = list((await self._reader.read(questions)).values())
        if not answers:
            return None, "it has no address"
        # Where it answers at one of its addresses, nothing is wrong with it at the other.
        answer = next((answer for answer in answers if answer.body is not None), answers[0])
        return _read_body(answer, pod.load)

    def _take(self, uid: str, reading: Reading) -> None:
        pod = self._pods.get(uid)
        if pod is None:
            return  # it was asked for while nobody wanted to know any more
        before = self._readings.get(uid)
        self._readings[uid] = reading
        if is_news(before, reading):
            # Many fall silent at once, and that is only told: what was applied or has drained goes first.
            self._changed(pod.key, Priority.LOW if reading.num_in_flight is None else Priority.HIGH)


def is_news(before: Reading | None, now: Reading) -> bool:
    """Return whether a reading may change a plan or a status.

    Each one may that shows an empty pod, whose drain ends with the first that is late enough, or one that is
    silent, and shows for how long. How many requests a busy pod has changes nothing.
    """
    return before is None or not now.num_in_flight or not before.num_in_flight


def questions_to(pod: Manifest, load: LoadPage) -> Iterator[Question]:
    """Yield how a draining pod is told and asked, for each of its addresses."""
    for address in pod_addresses(pod):
        load_url = pod_url(address, load.port, load.path)
        if load.drain is None:
            yield Question(load_url)
        else:
            drain_url = pod_url(address, load.port, load.drain.path)
            yield Question(load_url, drain_url, pod["metadata"]["uid"])


def _read_body(answer: PodAnswer, load: LoadPage) -> tuple[int | None, str]:
    if answer.body is None:
        return None, answer.trouble
    try:
        return load.read(answer.body), ""
    except ValueError as error:
        logger.warning("what a pod said of its requests: %s", error)
        return None, "its answer is not understood"
