"""Carries out a plan: each action is one API call, and the server's copy goes into the caches at once."""

import asyncio
import contextlib
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
    Forbidden,
    NotFound,
)
from stoker_operator.cluster.resources import BY_KIND, PDBS, PODS, Resource
from stoker_operator.desired.metadata import is_owned_by
from stoker_operator.observed import Failure, Refusal
from stoker_operator.plan import admitted
from stoker_operator.plan.actions import Action, Apply, CreatePod, DeleteBudget, DeletePod, StopServing
from stoker_operator.plan.drift import drift
from stoker_operator.reconcile.caches import Caches, Key
from stoker_operator.reconcile.pace import Pace
from stoker_operator.reconcile.taken_back import TakenBack
from stoker_operator.retry import Backoff

logger = logging.getLogger(__name__)

Object = dict[str, Any]

# Answers that stay the same until a person changes something: a quota, an admission policy, a bad field.
REFUSED_CODES = frozenset({400, 422})
# A write that somebody undoes would be repeated for ever, as fast as both can: it is slowed down.
ACT_AGAIN = Backoff(first_s=0.01, max_s=30.0, jitter=0.0)


@dataclass(frozen=True)
class Outcome:
    """What came of a plan's actions.

    Args:
        done: the actions that changed something.
        refusals: what the API server refused for good.
        failure: the call that may work later, after which nothing more was tried.
        error: why that call failed.
        wait_s: seconds until what was held back, because it was done a moment ago, may be done again.
    """

    done: tuple[Action, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    failure: Failure | None = None
    error: ApiError | ApiUnreachable | None = None
    wait_s: float | None = None


class Actor:
    """Does what plans say.

    Args:
        client: the API.
        caches: where the results go.
    """

    def __init__(self, client: KubeClient, caches: Caches) -> None:
        self._client = client
        self._caches = caches
        self._pace = Pace(ACT_AGAIN, lambda: asyncio.get_running_loop().time())
        self._taken_back = TakenBack(lambda: asyncio.get_running_loop().time())

    async def act(self, key: Key, model: Object, actions: tuple[Action, ...]) -> Outcome:
        """Carry out actions in their order, up to the first that fails but may work later."""
        refusals: list[Refusal] = []
        done: list[Action] = []
        waits = [self._pace.wait_s(key[0], action) for action in actions]
        for action, wait_s in zip(actions, tuple(waits), strict=True):
            if wait_s:
                continue
            held = self._taken_back.held(key, action) if isinstance(action, CreatePod) else None
            if held is not None:
                waits.append(held[0])
                refusals.append(held[1])
                continue
            logger.info("%s: %s", describe(action), action.reason, extra={"key": "/".join(key)})
            try:
                carried_out = await self._one(key, model, action)
                if carried_out is not None:
                    done.append(carried_out)
                    self._pace.done(key[0], action)
            except (ApiError, ApiUnreachable) as error:
                refusal = _refusal(action, error)
                if refusal is None:
                    logger.warning("%s: failed: %s", describe(action), error, extra={"key": "/".join(key)})
                    failure = Failure(describe(action), str(error))
                    return Outcome(tuple(done), tuple(refusals), failure, error)
                logger.warning("%s: refused: %s", describe(action), error, extra={"key": "/".join(key)})
                if isinstance(action, CreatePod) and isinstance(error, Altered):
                    self._taken_back.note(key, action, refusal)
                refusals.append(refusal)
        return Outcome(tuple(done), tuple(refusals), wait_s=min(filter(None, waits), default=None))

    def forget(self, key: Key) -> None:
        """The ModelDeployment is gone: another of its name begins anew."""
        self._taken_back.forget(key)

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
        self._taken_back.forget(key)
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
        case Apply(drift=paths):
            return f"apply {_target(action)} ({', '.join(paths) or 'missing'})"


def _target(action: Action) -> str:
    match action:
        case CreatePod(name=name) | StopServing(name=name) | DeletePod(name=name):
            return f"pod {name}"
        case DeleteBudget(name=name):
            return f"poddisruptionbudget {name}"
        case Apply(manifest=manifest):
            return f"{manifest['kind'].lower()} {manifest['metadata']['name']}"


def _refusal(action: Action, error: ApiError | ApiUnreachable) -> Refusal | None:
    if isinstance(error, Altered):
        return Refusal(_target(action), error.message, error.reason)
    if isinstance(error, Forbidden) or (isinstance(error, ApiError) and error.code in REFUSED_CODES):
        return Refusal(_target(action), error.message)
    return None
