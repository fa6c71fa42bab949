"""Builders for the operator's pure rooms: ModelDeployments and pods as the API server stores them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from stoker_operator.api import labels, parse
from stoker_operator.config import OperatorConfig
from stoker_operator.desired import Wanted, desired, wanted_replicas
from stoker_operator.desired.children import BUDGET, SERVICE, Headcount, children
from stoker_operator.desired.record import record
from stoker_operator.desired.shape import GroupShape, member
from stoker_operator.observed import Node, Observed, Reading

Object = dict[str, Any]

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
CONFIG = OperatorConfig(runtime_image="registry.example/stoker-runtime:1")
SOURCE = "hf://HuggingFaceTB/SmolLM2-135M-Instruct"


def timestamp(when: datetime) -> str:
    """Return a time as Kubernetes writes it."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(seconds: float) -> datetime:
    """Return the time so many seconds before NOW."""
    return NOW - timedelta(seconds=seconds)


def make_model(
    name: str = "smol",
    *,
    generation: int = 1,
    uid: str = "uid-smol",
    status: Object | None = None,
    **spec: Any,
) -> Object:
    """Return a ModelDeployment of one replica on CPUs; `spec` replaces whole fields of its spec."""
    fields: Object = {"model": {"source": SOURCE}, "accelerator": {"perPod": 0}, "replicas": 1, **spec}
    metadata = {"name": name, "namespace": "team", "uid": uid, "generation": generation}
    stored: Object = {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "metadata": {**metadata, "creationTimestamp": timestamp(ago(3600))},
        "spec": fields,
    }
    return stored if status is None else {**stored, "status": status}


def make_wanted(config: OperatorConfig = CONFIG, **spec: Any) -> Wanted:
    """Return what should exist for `make_model(**spec)`."""
    return wanted_of(make_model(**spec), config)


def wanted_of(stored_model: Object, config: OperatorConfig = CONFIG) -> Wanted:
    """Return what should exist for a stored ModelDeployment that can be served."""
    model = parse(stored_model)
    return desired(model, config, wanted_replicas(model))


def make_pod(
    wanted: Wanted,
    ordinal: int = 0,
    *,
    is_ready: bool = True,
    is_started: bool | None = None,
    is_serving: bool = True,
    draining_since: datetime | None = None,
    phase: str = "Running",
    node: str | None = "node-a",
    created_at: datetime | None = None,
    deleted_at: datetime | None = None,
    num_restarts: int = 0,
    status: Object | None = None,
) -> Object:
    """Return a pod of the wanted revision as the API server stores it.

    Args:
        wanted: what it was made from.
        ordinal: last part of its name.
        is_ready: its Ready condition.
        is_started: whether its engine answered since it (re)started; like `is_ready` if not given.
        is_serving: its label.
        draining_since: its annotation.
        phase: of the pod.
        node: where it runs; None when it is not scheduled.
        created_at: ten minutes ago if not given.
        deleted_at: when its deletion was asked for.
        num_restarts: failed predecessors, as its annotation says.
        status: replaces fields of its status.
    """
    name = f"{wanted.model.name}-{wanted.revision}-{ordinal}"
    pod = copy.deepcopy(member(shape_of(wanted), 0, name, wanted.revision, num_restarts))
    created = timestamp(created_at or ago(600))
    metadata = pod["metadata"]
    metadata |= {"uid": f"uid-{name}", "creationTimestamp": created, "resourceVersion": "1"}
    metadata["labels"][labels.SERVING] = "true" if is_serving else "false"
    if draining_since is not None:
        metadata["annotations"][labels.DRAINING_SINCE] = timestamp(draining_since)
    if deleted_at is not None:
        metadata["deletionTimestamp"] = timestamp(deleted_at)
    if node is not None:
        pod["spec"]["nodeName"] = node
    pod["status"] = {**pod_status(phase, created, is_ready, is_ready if is_started is None else is_started)}
    pod["status"] |= status or {}
    return pod


def pod_status(phase: str, since: str, is_ready: bool, is_started: bool) -> Object:
    """Return the status of a pod whose engine runs, or ended when the phase says so."""
    is_running = phase == "Running"
    state: Object = {"waiting": {"reason": "PodInitializing"}}
    if is_running:
        state = {"running": {"startedAt": since}}
    elif phase in ("Failed", "Succeeded"):
        state = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": since}}
    engine = {
        "name": labels.ENGINE_CONTAINER,
        "ready": is_ready,
        "started": is_started,
        "restartCount": 0,
        "state": state,
    }
    ready = "True" if is_ready else "False"
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": since},
        {"type": "Initialized", "status": "True" if is_running else "False", "lastTransitionTime": since},
        {"type": "Ready", "status": ready, "lastTransitionTime": since},
    ]
    address = {"podIP": "10.0.0.1"} if is_running else {}
    return {
        "phase": phase,
        "startTime": since,
        "conditions": conditions,
        "containerStatuses": [engine],
        **address,
    }


def make_observed(
    wanted: Wanted,
    *pods: Object,
    model: Object | None = None,
    service: Object | None = None,
    budget: Object | None = None,
    recorded: tuple[Wanted, ...] | None = None,
    nodes: dict[str, Node] | None = None,
    in_flight: dict[str, int | None] | None = None,
) -> Observed:
    """Return an observation in which the shared children are as wanted unless given.

    Args:
        wanted: what should exist.
        pods: those that exist.
        model: the stored ModelDeployment.
        service: the Service, if it is not as wanted.
        budget: the PodDisruptionBudget, if it is not as wanted while the pods that do not serve drain.
        recorded: what was wanted when revisions were put on record, oldest first; by default of the pods as
            they are, and then of `wanted`.
        nodes: by name; None when nodes may not be read.
        in_flight: requests in flight by pod name.
    """
    uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}
    readings = {uids[name]: Reading(NOW, count) for name, count in (in_flight or {}).items()}
    num_draining = sum(pod["metadata"]["labels"].get(labels.SERVING) == "false" for pod in pods)
    children = {
        (child.kind, child.name): stored(child.manifest, child.kind)
        for child in wanted.children(Headcount(num_draining=num_draining))
        if child.manifest is not None
    }
    given = {SERVICE: service, BUDGET: budget}
    children |= {(kind, wanted.model.name): obj for kind, obj in given.items() if obj is not None}
    return Observed(
        model=make_model() if model is None else model,
        pods=pods,
        children=children,
        revisions=tuple(_records(wanted, pods) if recorded is None else map(make_record, recorded)),
        nodes=nodes,
        readings=readings,
    )


def make_record(wanted: Wanted, number: int = 1) -> Object:
    """Return the record of a wanted revision as the API server stores it."""
    made = record(wanted.model, wanted.revision, shape_of(wanted), number)
    return stored(made, f"record-{wanted.revision}")


def _records(wanted: Wanted, pods: tuple[Object, ...]) -> Iterator[Object]:
    templates: dict[str | None, Object] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
        spec = {name: value for name, value in pod["spec"].items() if name != "nodeName"}
        templates.setdefault(pod["metadata"]["labels"].get(labels.REVISION), {**pod, "spec": spec})
    if wanted.shape is not None:
        templates.pop(wanted.revision, None)
        templates[wanted.revision] = wanted.shape.leader
    for number, (revision, template) in enumerate(templates.items(), 1):
        if revision:
            bare = {**template, "metadata": {"annotations": {}, **template["metadata"]}}
            yield stored(record(wanted.model, revision, GroupShape(bare), number), f"record-{revision}")


def shape_of(wanted: Wanted) -> GroupShape:
    """Return what groups of the wanted revision consist of."""
    assert wanted.shape is not None
    return wanted.shape


def with_size(wanted: Wanted, size: int) -> Wanted:
    """Return the same of groups with so many pods."""
    leader = shape_of(wanted).leader
    shape = GroupShape(leader, leader if size > 1 else None, size)
    return replace(wanted, shape=shape, shared=children(wanted.model, wanted.scale, Headcount(size)))


def service_of(wanted: Wanted) -> Object:
    """Return the Service that there should be."""
    service = wanted.child(SERVICE)
    assert service is not None
    return service


def stored(manifest: Object | None, kind: str) -> Object:
    """Return a manifest as the API server has it after an apply."""
    assert manifest is not None
    held = copy.deepcopy(manifest)
    held["metadata"] |= {"uid": f"uid-{kind}", "resourceVersion": "1"}
    return held
