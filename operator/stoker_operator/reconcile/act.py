"""Carries out a plan: each action is one API call, and the server's copy goes into the caches at once."""

import logging
from dataclasses import dataclass
from typing import Any

from stoker_operator.api.labels import DEPLOYMENT, DRAINING_SINCE, SERVING
from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import AlreadyExists, ApiError, Conflict, Forbidden, NotFound
from stoker_operator.cluster.resources import BY_KIND, PDBS, PODS, Resource
from stoker_operator.observed import Refusal
from stoker_operator.plan.actions import Action, Apply, CreatePod, DeleteBudget, DeletePod, StopServing
from stoker_operator.reconcile.caches import Caches, Key

logger = logging.getLogger(__name__)

Object = dict[str, Any]

# Answers that stay the same until a person changes something: a quota, an admission policy, a bad field.
REFUSED_CODES = frozenset({400, 422})


@dataclass(frozen=True)
class Outcome:
    """What came of a plan's actions.

    Args:
        done: the actions that changed something.
        refusals: what the API server refused for good.
    """

    done: tuple[Action, ...] = ()
    refusals: tuple[Refusal, ...] = ()


class Actor:
    """Does what plans say.

    Args:
        client: the API.
        caches: where the results go.
    """

    def __init__(self, client: KubeClient, caches: Caches) -> None:
        self._client = client
        self._caches = caches

    async def act(self, key: Key, model: Object, actions: tuple[Action, ...]) -> Outcome:
        """Carry out actions in their order.

        Raises:
            ApiError, ApiUnreachable: a call failed that may work later; the rest was not tried.
        """
        refusals: list[Refusal] = []
        done: list[Action] = []
        for action in actions:
            logger.info("%s: %s", describe(action), action.reason, extra={"key": "/".join(key)})
            try:
                if await self._one(key, model, action):
                    done.append(action)
            except ApiError as error:
                if error.code not in REFUSED_CODES and not isinstance(error, Forbidden):
                    raise
                logger.warning("%s: refused: %s", describe(action), error, extra={"key": "/".join(key)})
                refusals.append(Refusal(_target(action), error.message))
        return Outcome(tuple(done), tuple(refusals))

    async def look_again(self, key: Key, model: Object) -> None:
        """Read what was in the way of earlier passes live; it may be gone by now."""
        names = self._caches.in_the_way(key)
        self._caches.unblock(key)
        for plural, name in names:
            resource = next(kind for kind in BY_KIND.values() if kind.plural == plural)
            await self._take_live(key, model, resource, name)

    async def _one(self, key: Key, model: Object, action: Action) -> bool:
        """Carry out one action; returns whether it was done: not when an object is in the way."""
        match action:
            case CreatePod():
                return await self._create_pod(key, model, action)
            case StopServing():
                await self._stop_serving(key[0], action)
            case DeletePod():
                await self._delete(PODS, key[0], action.name, action.uid)
            case DeleteBudget():
                await self._delete(PDBS, key[0], action.name, action.uid)
            case Apply():
                return await self._apply(key, model, action)
        return True

    async def _create_pod(self, key: Key, model: Object, action: CreatePod) -> bool:
        try:
            created = await self._client.create(PODS, dict(action.manifest))
        except AlreadyExists:
            # Either our cache is behind, which this read mends, or the pod is somebody else's.
            await self._take_live(key, model, PODS, action.name)
            return False
        self._caches.stores[PODS].put(created)
        return True

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

    async def _apply(self, key: Key, model: Object, action: Apply) -> bool:
        manifest = dict(action.manifest)
        resource, name = BY_KIND[manifest["kind"]], manifest["metadata"]["name"]
        store = self._caches.stores[resource]
        # An apply takes over what it meets: make sure first that the name is free or the object ours.
        if store.get(key[0], name) is None and await self._take_live(key, model, resource, name):
            return False
        held = store.get(key[0], name)
        if held is not None:
            manifest["metadata"] = {**manifest["metadata"], "uid": held["metadata"]["uid"]}
        try:
            applied = await self._client.apply(resource, manifest)
        except Conflict:
            if held is not None:
                await self._refresh(resource, key[0], name, held["metadata"]["uid"])
            raise
        store.put(applied)
        return True

    async def _take_live(self, key: Key, model: Object, resource: Resource, name: str) -> bool:
        """Read an object that the cache lacks; returns whether it is not ours and in the way."""
        try:
            live = await self._client.get(resource, key[0], name)
        except NotFound:
            return False
        if (live["metadata"].get("labels") or {}).get(DEPLOYMENT) == key[1]:
            self._caches.stores[resource].put(live)
            return not _is_owned(live, model)
        self._caches.block(key, resource, live)
        return True

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


def _is_owned(child: Object, model: Object) -> bool:
    owners = child["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == model["metadata"]["uid"] for owner in owners)
