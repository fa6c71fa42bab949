"""Tells draining pods to drain, and asks them how many requests they still have."""

import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from stoker_operator.cluster.inflight import InFlightReader, PodAnswer, Question, pod_addresses, pod_url
from stoker_operator.observed import Manifest, Reading
from stoker_operator.profiles import EngineProfile
from stoker_operator.reconcile.caches import Key

logger = logging.getLogger(__name__)


class Drains:
    """What draining pods say.

    Each call tells them anew that they drain: nothing is lost when this process dies after the label was
    written and before the pod was told, nor when a pod's engine restarts meanwhile.

    Args:
        reader: calls pods.
        clock: the time.
    """

    def __init__(self, reader: InFlightReader, clock: Callable[[], datetime]) -> None:
        self._reader = reader
        self._clock = clock
        self._silent_since: dict[Key, dict[str, datetime]] = {}

    def forget(self, key: Key) -> None:
        """Nothing of this ModelDeployment drains."""
        self._silent_since.pop(key, None)

    async def readings(
        self, key: Key, pods: Mapping[str, Manifest], profile: EngineProfile
    ) -> dict[str, Reading]:
        """Tell and ask pods.

        Args:
            key: of their ModelDeployment.
            pods: those that drain, by uid.
            profile: of their engine.

        Returns:
            a reading for each of them.
        """
        questions = {
            f"{uid} {number}": question
            for uid, pod in pods.items()
            for number, question in enumerate(questions_to(pod, profile))
        }
        answers: dict[str, PodAnswer] = {}
        for name, answer in (await self._reader.read(questions)).items():
            uid = name.partition(" ")[0]
            # Where it answers at one of its addresses, nothing is wrong with it at the other.
            if answer.body is not None or uid not in answers:
                answers[uid] = answer
        before, now = self._silent_since.get(key, {}), self._clock()
        readings = {}
        for uid in pods:
            answer = answers.get(uid, PodAnswer(None, "it has no address"))
            num_in_flight, trouble = _read(answer, profile)
            since = None if num_in_flight is not None else before.get(uid, now)
            readings[uid] = Reading(num_in_flight, trouble, since)
        silent = {uid: reading.silent_since for uid, reading in readings.items() if reading.silent_since}
        self._silent_since[key] = silent
        return readings


def questions_to(pod: Manifest, profile: EngineProfile) -> Iterator[Question]:
    """Yield how a draining pod is told and asked, for each of its addresses."""
    for address in pod_addresses(pod):
        load_url = pod_url(address, profile.port, profile.in_flight_path)
        if profile.drain is None:
            yield Question(load_url)
        else:
            drain_url = pod_url(address, profile.port, profile.drain.path)
            yield Question(load_url, drain_url, pod["metadata"]["uid"])


def _read(answer: PodAnswer, profile: EngineProfile) -> tuple[int | None, str]:
    if answer.body is None:
        return None, answer.trouble
    try:
        return profile.read_in_flight(answer.body), ""
    except ValueError as error:
        logger.warning("what a pod said of its requests: %s", error)
        return None, "its answer is not understood"
