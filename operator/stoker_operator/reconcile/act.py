"""Carries out a plan: each action is one API call, and the server's copy goes into the caches at once."""

import asyncio
import contextlib
import itertools
import logging
from dataclasses import dataclass, replace
from typing import Any

from stoker_operator.api.labels import DEPLOYMENT, DRAINING_SINCE, SERVING
from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import (
    AlreadyExists,
    Altered,
    ApiError,
    ApiUnreachable,
    Conflict,
    NotFound,
)
from stoker_operator.cluster.resources import BY_KIND, PDBS, PODS, Resource
from stoker_operator.desired.metadata import is_owned_by
from stoker_operator.observed import Failure, Refusal
from stoker_operator.plan import admitted
from stoker_operator.plan.actions import Action, Apply, CreatePod, DeleteBudget, DeletePod, StopServing
from stoker_operator.plan.drift import drift
from stoker_operator.reconcile.caches import Caches, Key
from stoker_operator.reconcile.pace import FAILED, Pace, kind_of

logger = logging.getLogger(__name__)

Object = dict[str, Any]

# Answers of the server that say nothing about the write itself: it may work in a moment, or on another look.
PASSING_CODES = frozenset({401, 404, 408, 409, 410, 429})
# As many writes at once, at most, and as many refusals when a quota gets full between two of them.
MAX_AT_ONCE = 4


@dataclass(frozen=True)
class Outcome:
    """What came of a plan's actions.

    Args:
        done: the actions that changed something.
        refusals: what the API server refuses, now or the last time it was tried.
        failure: the first call that fails, now or the last time it was tried.
        error: why a call failed now.
        wait_s: seconds until what was not done may be tried.
        trouble_s: for how many seconds there has been trouble.
        is_unfinished: whether something came to nothing without trouble, as an object is in the way.
    """

    done: tuple[Action, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    failure: Failure | None = None
    error: ApiError | ApiUnreachable | None = None
    wait_s: float | None = None
    trouble_s: float = 0.0
    is_unfinished: bool = False


class Actor:
    """Does what plans say.

    Args:
        client: the API.
        caches: where the results go.
        pace: when what may be tried.
    """

    def __init__(self, client: KubeClient, caches: Caches, pace: Pace) -> None:
        self._client = client
        self._caches = caches
        self._pace = pace

    async def act(self, key: Key, model: Object, actions: tuple[Action, ...]) -> Outcome:
        """Carry out the actions that are due, in their order, each kind in batches of 1, 2, 4, 4.

        After a refusal or a failure no more of that kind is tried in this pass; after one that may concern
        every call, no answer or a busy server or a cache that is behind, nothing more is.
        """
        run = _Run()
        for kind, group in itertools.groupby(actions, kind_of):
            due = [action for action in group if not self._pace.wait_s(key, action)]
            due.sort(key=lambda action: self._pace.tried_at_s(key, action))
            size = 1
            while due and not run.is_over and kind not in run.troubled:
                batch, due = due[:size], due[size:]
                size = min(size * 2, MAX_AT_ONCE)
                results = await asyncio.gather(*(self._try(key, model, action) for action in batch))
                for action, result in zip(batch, results, strict=True):
                    run.take(action, result)
        return self._outcome(key, actions, run)

    async def _try(
        self, key: Key, model: Object, action: Action
    ) -> ApiError | ApiUnreachable | Action | None:
        """Carry out one action; returns it as done, or the error; None when something is in the way."""
        logger.info("%s: %s", describe(action), action.reason, extra={"key": "/".join(key)})
        try:
            carried_out = await self._one(key, model, action)
        except (ApiError, ApiUnreachable) as error:
            trouble = _trouble(action, error)
            verdict = "refused" if isinstance(trouble, Refusal) else "failed"
            logger.warning("%s: %s: %s", describe(action), verdict, error, extra={"key": "/".join(key)})
            num_writes = 2 if isinstance(error, Altered) else 1
            self._pace.failed(key, action, trouble, error.retry_after_s, num_writes)
            return error
        if carried_out is not None:
            self._pace.done(key, action)
        return carried_out

    def _outcome(self, key: Key, actions: tuple[Action, ...], run: "_Run") -> Outcome:
        """What was tried now, and what stands from before."""
        left = [action for action in actions if id(action) not in run.ended]
        troubles = [trouble for action in left if (trouble := self._pace.trouble(key, action)) is not None]
        waits = [self._pace.wait_s(key, action) for action in left]
        if run.is_over:
            # What was not even tried has no due time of its own: it waits with what failed.
            waits = [wait_s for wait_s in waits if wait_s]
        return Outcome(
            done=tuple(run.done),
            refusals=tuple(dict.fromkeys(found for found in troubles if isinstance(found, Refusal))),
            failure=next((found for found in troubles if isinstance(found, Failure)), None),
            error=run.error,
            wait_s=max(min(waits), FAILED.first_s) if waits else None,
            trouble_s=max((self._pace.trouble_s(key, action) for action in left), default=0.0),
            is_unfinished=run.is_unfinished,
        )

    async def look_again(self, key: Key) -> Outcome:
        """Read what was in the way of earlier passes live; it may be gone by now."""
        for plural, name in self._caches.in_the_way(key):
            resource = next(kind for kind in BY_KIND.values() if kind.plural == plural)
            try:
                await self._take_live(key, resource, name)
            except (ApiError, ApiUnreachable) as error:
                failure = Failure(f"read {resource.kind.lower()} {name}", str(error))
                return Outcome(failure=failure, error=error)
        return Outcome()

    async def _one(self, key: Key, model: Object, action: Action) -> Action | None:
        """Carry out one action; returns it as it was done: None when an object is in the way."""
        match action:
            case CreatePod():
                return await self._create_pod(key, action)
            case StopServing():
                await self._stop_serving(key[0], action)
            case DeletePod():
                await self._delete(PODS, key[0], action.name, action.uid)
            case DeleteBudget():
                await self._delete(PDBS, key[0], action.name, action.uid)
            case Apply():
                return await self._apply(key, model, action)
        return action

    async def _create_pod(self, key: Key, action: CreatePod) -> CreatePod | None:
        try:
            created = await self._client.create(PODS, dict(action.manifest))
        except AlreadyExists:
            # Either our cache is behind, which this read mends, or the pod is somebody else's.
            await self._take_live(key, PODS, action.name)
            return None
        problem = admitted.unusable(action.manifest, created)
        if problem is not None:
            await self._take_back(key, created)
            raise Altered(problem.reason, problem.message)
        self._caches.stores[PODS].put(created)
        return replace(action, changed=admitted.changed(action.manifest, created))

    async def _take_back(self, key: Key, created: Object) -> None:
        """Delete a pod that cannot serve; no pass should see it."""
        metadata = created["metadata"]
        with contextlib.suppress(NotFound):
            await self._client.delete(PODS, metadata["namespace"], metadata["name"], metadata["uid"])
        # Of one without our label no watch will say that it is gone: the cache need not remember it.
        if (metadata.get("labels") or {}).get(DEPLOYMENT) == key[1]:
            self._caches.stores[PODS].forget_deleted(created)

    async def _stop_serving(self, namespace: str, action: StopServing) -> None:
        labels, annotations = {SERVING: "false"}, {DRAINING_SINCE: action.since}
        patch = {"metadata": {"uid": action.uid, "labels": labels, "annotations": annotations}}
        try:
            patched = await self._client.merge_patch(PODS, namespace, action.name, patch)
        except NotFound:
            self._forget(PODS, namespace, action.name, action.uid)
        except Conflict:
            await self._refresh(PODS, namespace, action.name, action.uid)
            raise
        else:
            self._caches.stores[PODS].put(patched)

    async def _delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        try:
            answer = await self._client.delete(resource, namespace, name, uid)
        except NotFound:
            self._forget(resource, namespace, name, uid)
            return
        except Conflict:
            await self._refresh(resource, namespace, name, uid)
            raise
        if "deletionTimestamp" in (answer.get("metadata") or {}):
            self._caches.stores[resource].put(answer)
        else:
            self._forget(resource, namespace, name, uid)

    async def _apply(self, key: Key, model: Object, action: Apply) -> Apply | None:
        manifest = dict(action.manifest)
        resource, name = BY_KIND[manifest["kind"]], manifest["metadata"]["name"]
        store = self._caches.stores[resource]
        held = store.get(key[0], name)
        if held is None:
            # Not in the cache may mean without our label, and an apply takes over what it meets: look first.
            # To create instead would make these fields those of an update: no later apply could remove them.
            held = await self._take_live(key, resource, name)
        if held is not None:
            if not is_owned_by(held, model["metadata"]["uid"]):
                return None
            manifest["metadata"] = {**manifest["metadata"], "uid": held["metadata"]["uid"]}
        try:
            applied = await self._client.apply(resource, manifest)
        except Conflict:
            if held is not None:
                await self._refresh(resource, key[0], name, held["metadata"]["uid"])
            raise
        store.put(applied)
        self._caches.unblock(key, resource, name)
        return replace(action, changed=tuple(drift(action.manifest, applied)))

    async def _take_live(self, key: Key, resource: Resource, name: str) -> Object | None:
        """Read an object that the cache lacks, and remember what has that name."""
        try:
            live = await self._client.get(resource, key[0], name)
        except NotFound:
            self._caches.unblock(key, resource, name)
            return None
        if (live["metadata"].get("labels") or {}).get(DEPLOYMENT) == key[1]:
            self._caches.unblock(key, resource, name)
            self._caches.stores[resource].put(live)
        else:
            self._caches.block(key, resource, live)
        return live

    async def _refresh(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """After a conflict: bring the cache up to date, so that the next pass decides on what is there."""
        try:
            live = await self._client.get(resource, namespace, name)
        except NotFound:
            self._forget(resource, namespace, name, uid)
        else:
            self._caches.stores[resource].put(live)

    def _forget(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        gone = {"metadata": {"namespace": namespace, "name": name, "uid": uid}}
        self._caches.stores[resource].forget_deleted(gone)


def describe(action: Action) -> str:
    """The action in words, for logs: "create pod x"."""
    match action:
        case CreatePod():
            return f"create {_target(action)}"
        case StopServing():
            return f"stop serving from {_target(action)}"
        case DeletePod() | DeleteBudget():
            return f"delete {_target(action)}"
        case Apply(drift=drift):
            return f"apply {_target(action)} ({', '.join(drift) or 'missing'})"


def _target(action: Action) -> str:
    match action:
        case CreatePod(name=name) | StopServing(name=name) | DeletePod(name=name):
            return f"pod {name}"
        case DeleteBudget(name=name):
            return f"poddisruptionbudget {name}"
        case Apply(manifest=manifest):
            return f"{manifest['kind'].lower()} {manifest['metadata']['name']}"


def _trouble(action: Action, error: ApiError | ApiUnreachable) -> Refusal | Failure:
    """Tell what stays the same until a person changes something, such as a quota, from what passes."""
    if isinstance(error, Altered):
        return Refusal(_target(action), error.message, error.reason)
    if isinstance(error, ApiError) and 400 <= error.code < 500 and error.code not in PASSING_CODES:
        return Refusal(_target(action), error.message)
    return Failure(describe(action), str(error))


class _Run:
    """What came of the actions of one pass so far."""

    def __init__(self) -> None:
        self.done: list[Action] = []
        self.ended: set[int] = set()  # identities of actions that need not be tried again now
        self.is_unfinished = False
        self.troubled: set[str] = set()
        self.error: ApiError | ApiUnreachable | None = None
        self.is_over = False

    def take(self, action: Action, result: ApiError | ApiUnreachable | Action | None) -> None:
        """Note what came of one action."""
        if isinstance(result, ApiError | ApiUnreachable):
            self._take_error(action, result)
            return
        self.ended.add(id(action))
        if result is None:
            self.is_unfinished = True
        else:
            self.done.append(result)

    def _take_error(self, action: Action, error: ApiError | ApiUnreachable) -> None:
        self.troubled.add(kind_of(action))
        if isinstance(_trouble(action, error), Failure):
            self.error = self.error or error
            is_about_the_write = isinstance(error, ApiError) and error.code >= 500
            self.is_over = self.is_over or not is_about_the_write
