"""Carries out a plan: each action is one API call, and the server's copy goes into the caches at once."""

import asyncio
import contextlib
import itertools
import logging
from dataclasses import replace
from typing import Any

from stoker_operator.api.labels import DEPLOYMENT
from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import (
    AlreadyExists,
    Altered,
    ApiError,
    ApiUnreachable,
    Conflict,
    NotFound,
)
from stoker_operator.cluster.resources import BY_KIND, MODEL_DEPLOYMENTS, Resource
from stoker_operator.desired.metadata import is_owned_by
from stoker_operator.observed import Failure, Refusal
from stoker_operator.plan import admitted
from stoker_operator.plan.actions import Action, Adopt, Apply, Create, Delete, Patch
from stoker_operator.plan.drift import drift
from stoker_operator.plan.ownership import is_ours
from stoker_operator.reconcile.caches import Caches, Key
from stoker_operator.reconcile.outcome import Outcome, Run, describe, trouble_of
from stoker_operator.reconcile.pace import FAILED, Pace, kind_of

logger = logging.getLogger(__name__)

Object = dict[str, Any]

# As many writes at once, at most, and as many refusals when a quota gets full between two of them.
MAX_AT_ONCE = 4


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
        if not actions:
            return Outcome()
        run = Run()
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
            trouble = trouble_of(action, error)
            verdict = "refused" if isinstance(trouble, Refusal) else "failed"
            logger.warning("%s: %s: %s", describe(action), verdict, error, extra={"key": "/".join(key)})
            num_writes = 2 if isinstance(error, Altered) else 1
            self._pace.failed(key, action, trouble, error.retry_after_s, num_writes)
            return error
        if carried_out is not None:
            self._pace.done(key, action)
        return carried_out

    def _outcome(self, key: Key, actions: tuple[Action, ...], run: Run) -> Outcome:
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
            case Create():
                return await self._create(key, action)
            case Patch():
                await self._patch(key[0], action)
            case Delete():
                await self._delete(BY_KIND[action.kind], key[0], action.name, action.uid)
            case Apply():
                return await self._apply(key, model, action)
            case Adopt():
                return await self._adopt(key, model, action)
        return action

    async def _create(self, key: Key, action: Create) -> Create | None:
        resource = BY_KIND[action.kind]
        try:
            created = await self._client.create(resource, dict(action.manifest))
        except AlreadyExists:
            # Either our cache is behind, which this read mends, or the object is somebody else's.
            await self._take_live(key, resource, action.name)
            return None
        problem = admitted.problem(action.manifest, created)
        if problem is not None:
            await self._take_back(key, resource, created)
            raise Altered(problem.reason, problem.message)
        self._caches.stores[resource].put(created)
        return replace(action, changed=admitted.changed(action.manifest, created))

    async def _take_back(self, key: Key, resource: Resource, created: Object) -> None:
        """Delete what came back unusable; no pass should see it."""
        metadata = created["metadata"]
        with contextlib.suppress(NotFound):
            await self._client.delete(resource, metadata["namespace"], metadata["name"], metadata["uid"])
        # Of one without our label no watch will say that it is gone: the cache need not remember it.
        if (metadata.get("labels") or {}).get(DEPLOYMENT) == key[1]:
            self._caches.stores[resource].forget_deleted(created)

    async def _patch(self, namespace: str, action: Patch) -> None:
        resource = BY_KIND[action.kind]
        patch = {**action.body, "metadata": {**action.body["metadata"], "uid": action.uid}}
        try:
            patched = await self._client.merge_patch(resource, namespace, action.name, patch)
        except NotFound:
            self._forget(resource, namespace, action.name, action.uid)
        except Conflict:
            await self._refresh(resource, namespace, action.name, action.uid)
            raise
        else:
            self._caches.stores[resource].put(patched)

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
            is_allowed = is_ours(held, model) and await self._may_adopt(key, model, held)
            if not is_allowed:
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

    async def _adopt(self, key: Key, model: Object, action: Adopt) -> Adopt | None:
        resource = BY_KIND[action.kind]
        held = self._caches.stores[resource].get(key[0], action.name)
        if held is None or not await self._may_adopt(key, model, held):
            return None
        metadata = {
            "uid": action.uid,
            "resourceVersion": action.version,
            "ownerReferences": list(action.references),
        }
        try:
            patched = await self._client.merge_patch(resource, key[0], action.name, {"metadata": metadata})
        except NotFound:
            self._forget(resource, key[0], action.name, action.uid)
            return None
        except Conflict:
            await self._refresh(resource, key[0], action.name, action.uid)
            raise
        self._caches.stores[resource].put(patched)
        return action

    async def _may_adopt(self, key: Key, model: Object, child: Object) -> bool:
        """Whether a child is ours, or the ModelDeployment is still there to become its owner.

        Read live, as a ReplicaSet does: what is given an owner that was deleted meanwhile, the garbage
        collector deletes.
        """
        if is_owned_by(child, model["metadata"]["uid"]):
            return True
        try:
            live = await self._client.get(MODEL_DEPLOYMENTS, *key)
        except NotFound:
            return False
        metadata = live["metadata"]
        return bool(metadata["uid"] == model["metadata"]["uid"]) and "deletionTimestamp" not in metadata

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
