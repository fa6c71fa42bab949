"""Keeps a store equal to the cluster: list once, watch from there, list again when the history is gone."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from stoker_operator.cluster.client import ListPage, WatchEvent
from stoker_operator.cluster.errors import (
    ApiError,
    ApiUnreachable,
    Forbidden,
    Gone,
    Throttled,
    Unauthorized,
)
from stoker_operator.cluster.resources import Resource
from stoker_operator.informer.packed import Packed
from stoker_operator.informer.store import Store
from stoker_operator.retry import Backoff

logger = logging.getLogger(__name__)

PAGE_SIZE = 250
# A watch that is refused so often in a row may be refused because of where it starts: list again.
MAX_REFUSALS = 5


class Source(Protocol):
    """The two reads of ``KubeClient`` that a reflector needs."""

    async def list_page(
        self, resource: Resource, namespace: str | None, selector: str, limit: int, continue_token: str = ""
    ) -> ListPage:
        """One page of a list."""

    def watch(
        self, resource: Resource, namespace: str | None, selector: str, resource_version: str, timeout_s: int
    ) -> AsyncGenerator[WatchEvent, None]:
        """Events after a version."""


class WatchObserver(Protocol):
    """Who wants to know why watches start over (the metrics)."""

    def watch_restarted(self, resource: Resource, reason: str) -> None:
        """A watch ended: ``expired``, ``gone``, ``refused``, ``unreachable``."""


@dataclass(frozen=True)
class Scope:
    """What one reflector follows.

    Args:
        resource: kind of object.
        namespace: None for the whole cluster.
        selector: label selector; "" for everything.
        required: whether being forbidden to read it is an error; if not, the cache stays empty then.
    """

    resource: Resource
    namespace: str | None = None
    selector: str = ""
    required: bool = True

    def __str__(self) -> str:
        plural = self.resource.plural
        return plural if self.namespace is None else f"{plural} in namespace {self.namespace}"


class Reflector:
    """List and watch of one scope into a store.

    Attributes:
        synced: set when the store was filled, or stays empty as it may not be read and need not.
        is_current: whether the store follows the server, as far as anybody can tell.
        trouble: why the API refuses it now, if it does.
        refusal: why we may not read it, until it was listed again.

    Args:
        source: where lists and watches come from.
        scope: what to follow.
        store: what to keep up to date; several reflectors (one a namespace) may share it.
        rng: spreads watch timeouts and back-off.
        backoff: waits after failures.
        observer: told about every restart.
        watch_timeout_s: longest watch; the real one is up to a fifth shorter.
    """

    def __init__(
        self,
        source: Source,
        scope: Scope,
        store: Store,
        rng: random.Random | None = None,
        backoff: Backoff | None = None,
        observer: WatchObserver | None = None,
        watch_timeout_s: int = 300,
    ) -> None:
        self.scope = scope
        self.synced = asyncio.Event()
        self.is_current = False
        self._source = source
        self._store = store
        self._rng = rng or random.Random()
        self._backoff = backoff or Backoff(first_s=0.2, max_s=30.0)
        self._observer = observer
        self._watch_timeout_s = watch_timeout_s
        self._version: str | None = None
        self._newest_version = 0
        self._went_back = False
        self._num_failures = 0
        self._list_s = 0.0
        self._listed_at_s = 0.0
        self.trouble: str | None = None
        self.refusal: str | None = None
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when the store has been filled, and when the right to read the scope went."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Follow the scope until cancelled; errors of the API are waited out, all others end it."""
        while True:
            try:
                if self._version is None:
                    self._version = await self._list()
                    self.synced.set()
                    self.is_current, self.refusal = True, None
                    self._tell()
                await self._watch(self._version)
                self._restarted("expired")
            except Gone as error:
                # A list is what costs most: no more time goes into lists than passes between them.
                self._version = None
                listed_ago_s = asyncio.get_running_loop().time() - self._listed_at_s
                await self._wait_out(error, "gone", self._list_s - listed_ago_s)
            except ApiUnreachable as error:
                await self._wait_out(error, "unreachable", 0.0)
            except ApiError as error:
                await self._refused(error)

    async def _refused(self, error: ApiError) -> None:
        if isinstance(error, Forbidden) and not self.scope.required:
            self.synced.set()
        if self.trouble is None and self.scope.required:
            logger.warning("%s may not be followed: %s", self.scope, error)
        self.trouble = str(error)
        if isinstance(error, Forbidden):
            # Only a whole list shows that everything may be read again, and what happened meanwhile.
            self._version, self.refusal = None, str(error)
            self._tell()
        elif self._num_failures >= MAX_REFUSALS and not isinstance(error, Unauthorized | Throttled):
            self._version = None
        await self._wait_out(error, "refused", error.retry_after_s)

    async def _list(self) -> str:
        scope, objects, token = self.scope, list[Packed](), ""
        started_at = asyncio.get_running_loop().time()
        while True:
            page = await self._source.list_page(
                scope.resource, scope.namespace, scope.selector, PAGE_SIZE, token
            )
            # Items of a list carry neither apiVersion nor kind. A page at a time is held as it came.
            what = {"apiVersion": scope.resource.api_version, "kind": scope.resource.kind}
            objects += [self._store.pack({**what, **item}) for item in page.items]
            listed_at, token = page.resource_version, page.continue_token
            del page  # it is ten times its text: not two of them at once
            if not token:
                break
        version = self._number(listed_at)
        self._listed_at_s = asyncio.get_running_loop().time()
        self._list_s = self._listed_at_s - started_at
        self.trouble = None
        went_back = self._went_back or version < self._newest_version
        if went_back or self._store.is_ahead_of(objects, version):
            logger.warning("the history of %s went back: a backup was restored", scope)
            self._store.clear(scope.namespace)
        self._newest_version, self._went_back = version, False
        self._store.replace(objects, listed_at, scope.namespace)
        return listed_at

    async def _watch(self, version: str) -> None:
        timeout_s = int(self._watch_timeout_s * (1.0 - 0.2 * self._rng.random()))
        scope = self.scope
        events = self._source.watch(scope.resource, scope.namespace, scope.selector, version, timeout_s)
        started_at = asyncio.get_running_loop().time()
        async with aclosing(events):
            async for event in events:
                self.is_current = True
                self._take(event)
                self._num_failures, self.trouble = 0, None
        if asyncio.get_running_loop().time() - started_at < 1.0:
            # A server that ends every watch at once must not be asked in a tight loop.
            raise ApiUnreachable(f"the watch of {scope.resource.plural} ended at once")

    def _take(self, event: WatchEvent) -> None:
        version = str((event.object.get("metadata") or {}).get("resourceVersion") or "")
        number = self._number(version)
        if number < self._newest_version:
            # Versions of a watch only rise. Ours come from a history that the server no longer has, and what
            # it sends from now on would look older than what the store holds.
            self._went_back = True
            raise Gone(410, "WentBack", f"version {version} follows {self._newest_version}")
        if event.type in ("ADDED", "MODIFIED"):
            self._store.put(event.object)
        elif event.type == "DELETED":
            self._store.remove(event.object)
        elif event.type != "BOOKMARK":
            logger.warning("unknown watch event %s of %s", event.type, self.scope.resource.plural)
            return
        self._version = version
        self._newest_version = max(self._newest_version, number)

    def _number(self, version: str) -> int:
        """A resource version as a number; without one nobody would know where to go on."""
        if not version.isdecimal():
            raise ApiUnreachable(f"an answer about {self.scope.resource.plural} has no resource version")
        return int(version)

    async def _wait_out(self, error: Exception, reason: str, at_least_s: float) -> None:
        self._restarted(reason)
        self.is_current = False
        self._num_failures += 1
        delay_s = max(at_least_s, self._backoff.delay_s(self._num_failures, self._rng.random()))
        extra = {"resource": self.scope.resource.plural, "retry_in_s": round(delay_s, 3)}
        if self.scope.namespace is not None:
            extra["namespace"] = self.scope.namespace
        logger.warning("watch failed: %s", error, extra=extra)
        await asyncio.sleep(delay_s)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _restarted(self, reason: str) -> None:
        if self._observer is not None:
            self._observer.watch_restarted(self.scope.resource, reason)
