"""What the API server makes of our writes: unknown fields, fields it drops, labels that policies take."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from fakeapi.client import everything, put
from fakeapi.kinds import Kind
from operator_world import NAME, Object, World, play, writes_of
from virtual_time import pass_time, until

from stoker_operator.api import labels

METADATA = {"namespace": "default"}
Mutation = Callable[[Object], None]


def mutate_pods(world: World, patch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    """Let admission change each pod that is created from now on."""
    insert = world.api.storage.insert

    def admitted(kind: Kind, obj: Object, owners: Any) -> Object:
        obj = copy.deepcopy(obj)
        if kind.plural == "pods":
            mutation(obj)
        return insert(kind, obj, owners)

    patch.setattr(world.api.storage, "insert", admitted)


def drop_image_volumes(pod: Object) -> None:
    """As API servers do whose feature gate ImageVolume is off."""
    spec = pod["spec"]
    dropped = {volume["name"] for volume in spec["volumes"] if "image" in volume}
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] not in dropped]
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] not in dropped]


def drop_label(pod: Object) -> None:
    del pod["metadata"]["labels"][labels.DEPLOYMENT]


def change_serving(pod: Object) -> None:
    pod["metadata"]["labels"][labels.SERVING] = "no"


def drop_owner(pod: Object) -> None:
    del pod["metadata"]["ownerReferences"]


def drop_controller(pod: Object) -> None:
    del pod["metadata"]["ownerReferences"][0]["controller"]


def drop_volume_mount(pod: Object) -> None:
    (container,) = pod["spec"]["containers"]
    container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] != "model"]


def drop_accelerator(pod: Object) -> None:
    (container,) = pod["spec"]["containers"]
    container["resources"] = {"limits": {"example.com/share": "50"}}


def events_of(world: World) -> dict[str, str]:
    return {event["reason"]: event["note"] for event in everything(world.api, "events")}


def test_a_field_that_the_server_does_not_know_is_named() -> None:
    async def scenario(world: World) -> None:
        world.api.unknown_fields = ("spec.affinity.nodeAfinity",)
        world.apply(scheduling={"affinity": {"nodeAfinity": {}}})
        await until(lambda: world.condition("Stalled").get("status") == "True", 10.0)
        assert world.condition("Stalled")["reason"] == "Refused"
        assert 'unknown field "spec.affinity.nodeAfinity"' in world.condition("Stalled")["message"]
        assert world.pods() == []

    play(scenario)


def test_image_volumes_that_the_server_drops_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod would start without a model and say ModelNotFound, to somebody who sees it in the registry."""

    async def scenario(world: World) -> None:
        mutate_pods(world, monkeypatch, drop_image_volumes)
        world.apply(model={"source": "oci://registry.example/smol:1"})
        await until(lambda: world.condition("Stalled").get("status") == "True", 10.0)
        for condition in ("Stalled", "Ready"):
            assert world.condition(condition)["reason"] == "ImageVolumesOff"
            assert "feature gate ImageVolume" in world.condition(condition)["message"]
        await pass_time(30.0)
        assert world.pods() == [], "none is left to fail"
        monkeypatch.undo()
        await world.ready(deadline_s=90.0)

    play(scenario)


def test_pods_from_before_that_have_no_model_are_replaced_when_image_volumes_are_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operator that did not look left them, or one that died between the creation and the look."""

    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        (pod,) = world.pods()
        world.stop()
        spec = copy.deepcopy(pod["spec"])
        drop_image_volumes({"spec": spec})
        world.api.storage.remove("pods", ("default", pod["metadata"]["name"]))
        twin = {name: value for name, value in pod.items() if name != "status"}
        put(world.api, "pods", {**twin, "spec": spec})
        mutate_pods(world, monkeypatch, drop_image_volumes)
        world.kubelet.is_broken = lambda pod: True
        world.restart()
        await until(lambda: world.condition("Stalled").get("reason") == "ImageVolumesOff", 30.0)
        world.kubelet.is_broken = lambda pod: False
        monkeypatch.undo()
        await world.ready(deadline_s=120.0)

    play(scenario)


@pytest.mark.parametrize(
    ("mutation", "told"),
    [
        (drop_label, "metadata.labels[stoker.dev/deployment]"),
        (change_serving, "metadata.labels[stoker.dev/serving]"),
        (drop_owner, "metadata.ownerReferences[ModelDeployment smol]"),
        (drop_controller, "metadata.ownerReferences[ModelDeployment smol]"),
    ],
)
def test_a_pod_that_admission_made_a_strangers_is_taken_back_and_told(
    mutation: Mutation, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would find it again: the next pass would make another, for ever."""

    async def scenario(world: World) -> None:
        mutate_pods(world, monkeypatch, mutation)
        world.apply(replicas=3)
        await until(lambda: world.condition("Stalled").get("status") == "True", 10.0)
        assert world.condition("Stalled")["reason"] == "ChangedByAdmission"
        assert told in world.condition("Stalled")["message"]
        await pass_time(600.0)
        assert world.condition("Stalled")["reason"] == "ChangedByAdmission"
        assert world.pods() == []
        monkeypatch.undo()
        await world.ready(deadline_s=90.0)
        assert len(world.pods()) == 3

    play(scenario)


@pytest.mark.parametrize("mutation", [drop_label, drop_image_volumes, drop_volume_mount])
def test_tries_that_come_back_changed_are_few(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each creation and each deletion is an event that would begin the next try."""

    async def scenario(world: World) -> None:
        mutate_pods(world, monkeypatch, mutation)
        world.apply(replicas=5)
        for _ in range(5):
            start = len(world.api.writes)
            await pass_time(60.0)
            made_once = ("POST default/controllerrevisions", f"PATCH services/{NAME}")
            assert len([write for write in writes_of(world, start) if write not in made_once]) <= 12
            assert world.condition("Ready")["status"] == "False"
        statuses = Counter(writes_of(world))[f"PATCH {NAME}/status"]
        assert statuses <= 4, "the reason stays told, it does not come and go"

    play(scenario)


def test_an_edit_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        mutate_pods(world, monkeypatch, drop_image_volumes)
        world.apply()
        await pass_time(300.0)
        assert world.condition("Stalled")["reason"] == "ImageVolumesOff"
        world.apply(model={"source": "pvc://models/smol"})
        await world.ready(deadline_s=5.0)

    play(scenario)


def test_another_of_that_name_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        mutate_pods(world, monkeypatch, drop_image_volumes)
        world.apply()
        await pass_time(300.0)
        world.delete()
        await until(lambda: not world.picture(), 10.0)
        monkeypatch.undo()
        world.apply()
        await world.ready(deadline_s=5.0)

    play(scenario)


def test_a_held_revision_keeps_the_owners_that_others_added() -> None:
    """Its pods are made after one that lives, with all that others wrote into it."""

    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        (pod,) = world.pods()
        theirs = {"apiVersion": "v1", "kind": "Batch", "name": "b", "uid": "u-b"}
        owners = [*pod["metadata"]["ownerReferences"], theirs]
        metadata = {**METADATA, "name": pod["metadata"]["name"], "ownerReferences": owners}
        put(world.api, "pods", {"metadata": metadata})
        world.apply(rollout={"paused": True}, engine={"maxNumSeqs": 8}, replicas=2)
        await until(lambda: world.status()["readyReplicas"] == 2, 30.0)

    play(scenario)


def test_other_accelerators_than_asked_are_told_and_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fractions of a device are made that way; a pod without any would compute on the CPU, in silence."""

    async def scenario(world: World) -> None:
        mutate_pods(world, monkeypatch, drop_accelerator)
        world.apply(accelerator={"perPod": 1})
        await world.ready()
        assert "limits[nvidia.com/gpu] is missing, not 1" in events_of(world)["ChangedByAdmission"]

    play(scenario)


def test_a_service_that_admission_points_elsewhere_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients would reach nobody, or somebody else, while the pods answer their probes."""

    async def scenario(world: World) -> None:
        def changed(kind: Kind, obj: Object, owners: Any, write: Any = world.api.storage.update) -> Object:
            if kind.plural == "services":
                obj = {**obj, "spec": {**obj["spec"], "selector": {"app": "elsewhere"}}}
            result: Object = write(kind, obj, owners)
            return result

        insert = world.api.storage.insert
        world.apply()
        await world.ready()
        monkeypatch.setattr(world.api.storage, "update", changed)
        monkeypatch.setattr(
            world.api.storage, "insert", lambda kind, obj, owners: changed(kind, obj, owners, insert)
        )
        world.apply(service={"port": 8080})
        await until(lambda: world.condition("Ready")["reason"] == "ChangedByAdmission", 10.0)
        assert "spec.selector" in world.condition("Ready")["message"]
        await pass_time(60.0)
        start = len(world.api.writes)
        await pass_time(60.0)
        assert len(writes_of(world, start)) <= 12
        assert "spec.selector" in events_of(world)["ChangedByAdmission"]
        monkeypatch.undo()
        await world.ready(deadline_s=60.0)

    play(scenario)


def test_what_a_cluster_makes_of_a_service_is_no_news() -> None:
    async def scenario(world: World) -> None:
        world.apply(service={"type": "LoadBalancer"})
        await world.ready()
        ports = [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP", "nodePort": 31000}]
        spec = {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "ports": ports}
        put(world.api, "services", {"metadata": {**METADATA, "name": NAME}, "spec": spec})
        await world.settled()
        assert world.is_ready()
        assert "ChangedByAdmission" not in events_of(world)

    play(scenario)


def test_what_admission_adds_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    def inject(pod: Object) -> None:
        pod["metadata"]["labels"] |= {"team": "a", "app.kubernetes.io/managed-by": "mesh"}
        pod["metadata"]["ownerReferences"].append({"kind": "Batch", "name": "b", "uid": "u-b"})
        pod["spec"]["containers"].insert(0, {"name": "proxy", "image": "proxy:1"})
        pod["spec"]["volumes"] = [{"name": "certs", "emptyDir": {}}, *pod["spec"]["volumes"]]
        for volume in pod["spec"]["volumes"]:
            if "image" in volume:
                volume["image"]["reference"] = "mirror.example/smol:1"

    async def scenario(world: World) -> None:
        mutate_pods(world, monkeypatch, inject)
        world.apply(accelerator={"perPod": 1})
        await world.ready()
        assert "ChangedByAdmission" not in events_of(world)

    play(scenario)
