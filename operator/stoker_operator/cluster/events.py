"""Writes Kubernetes Events about a ModelDeployment, one for each happening, counted when it comes again.

Events tell a person what went on; conditions carry the state. So an Event that cannot be written is logged
and counted as dropped, and never fails a pass. What an operator tells anew is always written; how often a
minute it may write what turns out to be told already, or cannot be, has a limit for each object.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import AlreadyExists, ApiError, ApiUnreachable, NotFound
from stoker_operator.cluster.resources import EVENTS
from stoker_operator.retry import TokenBucket
from stoker_operator.status import Event

logger = logging.getLogger(__name__)

Object = dict[str, Any]

MAX_REMEMBERED = 4096
MAX_NOTE_BYTES = 1024  # the API's limit
# That something happens again is written the first time, then now and then with its count, as client-go does.
COUNT_AGAIN_AFTER = timedelta(minutes=5)
# Of each object, writes that tell nothing new. A process begins with none: it does not know what the last one
# told, so it looks first.
MAX_FRUITLESS, REFILL_S = 2, 30.0


class EventRecorder:
    """Writes Events.

    Args:
        client: the API.
        clock: the time.
        instance: name of this process.
        on_drop: called when an Event was lost.
    """

    def __init__(
        self,
        client: KubeClient,
        clock: Callable[[], datetime],
        instance: str,
        on_drop: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._instance = instance
        self._on_drop = on_drop
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._written_at: dict[str, datetime] = {}
        self._fresh = TokenBucket(MAX_FRUITLESS, REFILL_S, clock().timestamp())
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()  # of objects, by uid

    async def record(self, about: Object, event: Event) -> None:
        """Write one Event about an object, or count it once more."""
        name = _name(about, event)
        try:
            count = self._counts.get(name, 0)
            if count == 0:
                await self._create(about, event, name)
            elif not self._is_due(about, name, count):
                self._counts[name] = count + 1
            elif not await self._count(about, name, count + 1):
                await self._create(about, event, name)
        except (ApiError, ApiUnreachable) as error:
            logger.warning("event %s was not written: %s", event.reason, error)
            self._on_drop()

    def _is_due(self, about: Object, name: str, count: int) -> bool:
        """Whether an Event may be counted once more."""
        is_news = count == 1 or self._clock() - self._written_at[name] >= COUNT_AGAIN_AFTER
        return is_news and self._tokens(about) >= 1

    async def _create(self, about: Object, event: Event, name: str) -> None:
        tokens = self._tokens(about)
        if tokens < 0:
            logger.info("event %s was not written: too many failed", event.reason)
            self._on_drop()
            return
        if tokens < 1 and await self._is_told(about, name):
            return
        try:
            await self._client.create(EVENTS, self._manifest(about, event, name))
        except AlreadyExists:
            self._take(about)
            await self._is_told(about, name)
        except (ApiError, ApiUnreachable):
            self._take(about)
            raise
        else:
            self._remember(name, 1)

    async def _is_told(self, about: Object, name: str) -> bool:
        """Whether an earlier process wrote an Event, which is no news: it is counted in memory until due."""
        try:
            live = await self._client.get(EVENTS, about["metadata"]["namespace"], name)
        except NotFound:
            return False
        self._remember(name, int((live.get("series") or {}).get("count") or 1) + 1)
        return True

    async def _count(self, about: Object, name: str, count: int) -> bool:
        series = {"count": count, "lastObservedTime": self._now()}
        self._take(about)
        try:
            await self._client.merge_patch(EVENTS, about["metadata"]["namespace"], name, {"series": series})
        except NotFound:
            return False  # the API server drops Events after an hour
        self._remember(name, count)
        return True

    def _tokens(self, about: Object) -> float:
        return self._buckets.get(about["metadata"]["uid"], self._fresh).tokens(self._clock().timestamp())

    def _take(self, about: Object) -> None:
        uid = about["metadata"]["uid"]
        self._buckets[uid] = self._buckets.get(uid, self._fresh).taken(self._clock().timestamp())
        self._buckets.move_to_end(uid)
        if len(self._buckets) > MAX_REMEMBERED:
            self._buckets.popitem(last=False)

    def _manifest(self, about: Object, event: Event, name: str) -> Object:
        metadata = about["metadata"]
        regarding = {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        }
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "eventTime": self._now(),
            "reportingController": "stoker.dev/operator",
            "reportingInstance": self._instance,
            "type": event.type,
            "reason": event.reason,
            "action": event.action,
            "note": event.note.encode()[:MAX_NOTE_BYTES].decode(errors="ignore"),
            "regarding": regarding,
        }

    def _remember(self, name: str, count: int) -> None:
        self._counts[name], self._written_at[name] = count, self._clock()
        self._counts.move_to_end(name)
        if len(self._counts) > MAX_REMEMBERED:
            oldest, _ = self._counts.popitem(last=False)
            del self._written_at[oldest]

    def _now(self) -> str:
        return self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _name(about: Object, event: Event) -> str:
    """The same happening has the same name, also after a restart."""
    metadata = about["metadata"]
    parts = "\0".join((metadata["uid"], event.type, event.reason, event.action, event.note))
    return f"{metadata['name'][:180]}.{hashlib.sha256(parts.encode()).hexdigest()[:16]}"
