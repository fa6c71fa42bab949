"""The caches behind reconcile passes: which kinds are followed, and what one ModelDeployment sees of them."""

import hashlib
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import orjson

from stoker_operator.api.labels import DEPLOYMENT
from stoker_operator.api.managers import Contest, contest
from stoker_operator.cluster.resources import (
    CONTROLLER_REVISIONS,
    MODEL_DEPLOYMENTS,
    NODES,
    PDBS,
    PODS,
    SERVICES,
    Resource,
)
from stoker_operator.informer.reflector import Reflector, Scope, Source, WatchObserver
from stoker_operator.informer.store import Store
from stoker_operator.observed import Observed, Reading
from stoker_operator.plan.pods import is_evicted
from stoker_operator.reconcile.nodes import KnownNodes, trim_node
from stoker_operator.reconcile.trim import trim_model, trim_pod
from stoker_operator.reconcile.turns import Turns

logger = logging.getLogger(__name__)

Object = dict[str, Any]
Key = tuple[str, str]

SHARED = (SERVICES, PDBS)
CHILDREN = (PODS, *SHARED, CONTROLLER_REVISIONS)


class Caches:
    """A store for each kind, the reflectors that fill them, and the objects that only stand in our way.

    Args:
        source: lists and watches.
        namespaces: which to follow; empty for the whole cluster.
        changed: called with the key of a ModelDeployment that something happened to.
        rng: spreads watch timeouts and back-off.
        clock: the time.
        observer: told about restarts of watches.
        drains_cordoned: whether a cordon says that the node's pods have to leave.
    """

    def __init__(
        self,
        source: Source,
        namespaces: tuple[str, ...],
        changed: Callable[[Key], None],
        rng: random.Random,
        clock: Callable[[], datetime],
        observer: WatchObserver | None = None,
        drains_cordoned: bool = True,
    ) -> None:
        self._changed = changed
        self._nodes = KnownNodes(clock, drains_cordoned)
        self.turns = Turns(clock, self._staying_uid, changed)
        # What passes depend on of each ModelDeployment, as it was last seen.
        self._essences: dict[Key, Essence] = {}
        # Objects without our label that hold a name we need: no watch covers them.
        self._in_the_way: dict[Key, dict[tuple[str, str], Object]] = {}
        self.stores: dict[Resource, Store] = {
            MODEL_DEPLOYMENTS: Store(trim=trim_model),
            NODES: Store(trim=trim_node),
        }
        self.stores |= {kind: Store(index=_owner_keys) for kind in CHILDREN}
        self.stores[PODS] = Store(trim=trim_pod, index=lambda pod: [*_owner_keys(pod), *_node_keys(pod)])
        self.stores[MODEL_DEPLOYMENTS].subscribe(self._model_changed)
        self.stores[NODES].subscribe(self._node_changed)
        for kind in CHILDREN:
            self.stores[kind].subscribe(self._pod_changed if kind is PODS else self._child_changed)
        self.reflectors = [
            Reflector(source, scope, self.stores[scope.resource], rng, observer=observer)
            for scope in _scopes(namespaces)
        ]
        self._node_reflector = next(r for r in self.reflectors if r.scope.resource == NODES)

    def unsynced(self) -> list[str]:
        """What has not been listed yet."""
        return sorted(str(reflector.scope) for reflector in self.reflectors if not reflector.synced.is_set())

    def keys(self) -> list[Key]:
        """Keys of all ModelDeployments."""
        return self.stores[MODEL_DEPLOYMENTS].all_keys()

    def model(self, key: Key) -> Object | None:
        """The ModelDeployment as last seen."""
        return self.stores[MODEL_DEPLOYMENTS].get(*key)

    def observe(self, key: Key, model: Object, readings: Mapping[str, Reading] | None = None) -> Observed:
        """A snapshot of everything that belongs to one ModelDeployment."""
        in_the_way = self._in_the_way.get(key, {})
        pods = self.stores[PODS].indexed(key)
        pods += [obj for (plural, _), obj in sorted(in_the_way.items()) if plural == PODS.plural]
        return Observed(
            model=model,
            pods=tuple(pods),
            children=self._children(key),
            revisions=tuple(self.stores[CONTROLLER_REVISIONS].indexed(key)),
            nodes=self._nodes.of(map(_node_name, pods), self._node_reflector.is_current),
            readings=readings or {},
            turns=self.turns.of(key),
        )

    def in_the_way(self, key: Key) -> list[tuple[str, str]]:
        """(plural, name) of the objects that hold a name this ModelDeployment needs."""
        return sorted(self._in_the_way.get(key, {}))

    def block(self, key: Key, resource: Resource, obj: Object) -> None:
        """Remember an object that holds a name we need."""
        self._in_the_way.setdefault(key, {})[(resource.plural, obj["metadata"]["name"])] = obj

    def unblock(self, key: Key, resource: Resource, name: str) -> None:
        """The name is free, or what has it is in the cache: forget what we remember of it."""
        found = self._in_the_way.get(key, {})
        found.pop((resource.plural, name), None)
        if not found:
            self._in_the_way.pop(key, None)

    def forget(self, key: Key) -> None:
        """The ModelDeployment is gone: nothing is in its way any more."""
        self._in_the_way.pop(key, None)

    def put_status(self, key: Key, written: Object) -> None:
        """Take in the answer to a status that we wrote, which is no news to us; what else it shows is."""
        seen = self._essences.get(key)
        if seen is not None:
            self._essences[key] = replace(seen, status=_status_hash(written))
        self.stores[MODEL_DEPLOYMENTS].put(written)

    def is_news(self, key: Key, model: Mapping[str, Any]) -> bool:
        """Whether a ModelDeployment as somebody saw it differs in what passes depend on."""
        return self._essences.get(key) != essence(model)

    def _children(self, key: Key) -> dict[tuple[str, str], Object]:
        """What all pods share; what has its name and another label is in its way."""
        found: dict[tuple[str, str], Object] = {}
        for kind in SHARED:
            own = {obj["metadata"]["name"]: obj for obj in self.stores[kind].indexed(key)}
            named = self.stores[kind].get(*key) or self._in_the_way.get(key, {}).get((kind.plural, key[1]))
            if named is not None:
                own[key[1]] = named
            found |= {(kind.kind, name): obj for name, obj in own.items()}
        return found

    def _model_changed(self, model: Object) -> None:
        key = (model["metadata"]["namespace"], model["metadata"]["name"])
        held = self.model(key)
        if held is None:
            self._essences.pop(key, None)
        elif self.is_news(key, held):
            self._essences[key] = essence(held)
        else:
            return
        self._changed(key)
        self.turns.tell(key[0])

    def _staying_uid(self, key: Key) -> str | None:
        """Uid of a ModelDeployment; None when it is gone or on its way out, and its pods with it."""
        found = self._essences.get(key)
        return None if found is None or found.is_deleting else found.uid

    def _child_changed(self, child: Object) -> None:
        for key in _owner_keys(child):
            self._changed(key)

    def _pod_changed(self, pod: Object) -> None:
        self._child_changed(pod)
        metadata = pod["metadata"]
        self.turns.see(pod, lambda: self.stores[PODS].get(metadata["namespace"], metadata["name"]))
        if is_evicted(pod) and self._nodes.note_eviction(_node_name(pod)):
            self._wake_pods_on(_node_name(pod))

    def _node_changed(self, node: Object) -> None:
        name = node["metadata"]["name"]
        held = self.stores[NODES].get("", name)
        if not self._nodes.update(name, held):
            return  # a heartbeat
        if held is not None and held["departure"]:
            logger.info("node %s is about to go, says %s", name, held["departure"])
        self._nodes.forget_gone(lambda gone: self.stores[PODS].is_indexed(("", gone)))
        self._wake_pods_on(name)

    def _wake_pods_on(self, node: str) -> None:
        for pod in self.stores[PODS].indexed(("", node)):
            self._child_changed(pod)


@dataclass(frozen=True, slots=True)
class Essence:
    """What passes depend on of a ModelDeployment: all but bookkeeping, such as versions.

    The status is part of it, so that what others write there is mended; what we wrote is known already.

    Args:
        uid: of the object.
        generation: of the spec.
        is_deleting: whether it is on its way out.
        notes: hash of its labels and annotations.
        status: hash of its status.
        contest: who sets its replicas besides whom.
    """

    uid: str
    generation: int
    is_deleting: bool
    notes: bytes
    status: bytes
    contest: Contest | None


def essence(model: Mapping[str, Any]) -> Essence:
    """Return what passes depend on of a ModelDeployment."""
    metadata = model["metadata"]
    return Essence(
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 0,
        is_deleting="deletionTimestamp" in metadata,
        notes=_digest([metadata.get("labels") or {}, metadata.get("annotations") or {}]),
        status=_status_hash(model),
        contest=contest(model),
    )


def _status_hash(model: Mapping[str, Any]) -> bytes:
    return _digest(model.get("status") or {})


def _digest(value: Any) -> bytes:
    """Return a hash of a JSON value, which this process alone compares with others of its own."""
    text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(text, digest_size=16).digest()


def _scopes(namespaces: tuple[str, ...]) -> list[Scope]:
    where: tuple[str | None, ...] = namespaces or (None,)
    result = [Scope(MODEL_DEPLOYMENTS, namespace) for namespace in where]
    result += [Scope(kind, namespace, DEPLOYMENT) for kind in CHILDREN for namespace in where]
    # Nodes belong to the whole cluster, which an operator of single namespaces may not be allowed to read.
    return [*result, Scope(NODES, required=not namespaces)]


def _owner_keys(child: Object) -> list[Key]:
    metadata = child["metadata"]
    owner = (metadata.get("labels") or {}).get(DEPLOYMENT)
    return [(metadata.get("namespace") or "", owner)] if owner else []


def _node_keys(pod: Object) -> list[Key]:
    """Index key of the pod's node; no ModelDeployment has an empty namespace, so the two never meet."""
    return [("", _node_name(pod))] if _node_name(pod) else []


def _node_name(pod: Object) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "")
