"""Records of revisions: pods are made of their ControllerRevision, whatever became of pods and spec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakeapi.admission import Hook, edit, prune, quota, refuse, relabel
from fakeapi.client import delete, everything, get, put
from operator_world import CONFIG, NAME, Object, World, play, writes_of
from virtual_time import pass_time, until

from stoker_operator.api import labels

OLD: Object = {"engine": {"maxModelLen": 1024}}
NEW: Object = {"engine": {"maxModelLen": 2048}}


def records(world: World) -> list[Object]:
    return everything(world.api, "controllerrevisions")


def engine_args(pod: Object) -> list[str]:
    args: list[str] = pod["spec"]["containers"][0]["args"]
    return args


def inject(pod: Object) -> None:
    """What service meshes, networks and device plugins write into pods."""
    pod["metadata"]["annotations"]["k8s.ovn.org/pod-networks"] = "10.1.2.3"
    pod["metadata"]["labels"]["mesh"] = "injected"
    pod["spec"]["containers"].append({"name": "proxy", "image": "mesh:1"})


async def evict(world: World) -> None:
    """Lose one pod for good, and wait until it is gone."""
    name = world.pod_names()[0]
    delete(world.api, "pods", name, grace_s=0)
    await until(lambda: name not in world.pod_names() or len(world.pods()) > 1, 30.0)


def test_a_pod_of_a_held_revision_is_made_as_the_first_one_was() -> None:
    async def scenario(world: World) -> None:
        world.api.admission.append(edit("pods", inject))
        world.apply(replicas=1, **OLD)
        await world.ready()
        world.apply(replicas=3, **NEW, rollout={"paused": True})
        await until(lambda: len(world.pods()) == 3, 30.0)
        for pod in world.pods():
            assert [container["name"] for container in pod["spec"]["containers"]] == ["engine", "proxy"]
            assert any("1024" in arg for arg in engine_args(pod))
        world.api.admission.clear()
        await evict(world)
        await world.settled()
        (bare,) = [pod for pod in world.pods() if "mesh" not in pod["metadata"]["labels"]]
        assert len(bare["spec"]["containers"]) == 1
        assert "k8s.ovn.org/pod-networks" not in bare["metadata"]["annotations"]
        assert len(records(world)) == 1, "the revision that waits is not on record yet"

    play(scenario)


def test_another_operator_makes_pods_of_a_revision_as_the_first_did() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=1, **OLD)
        await world.ready()
        world.config = replace(CONFIG, runtime_image="registry.example/stoker-runtime:next")
        world.kill()
        world.apply(replicas=2)
        await until(lambda: len(world.pods()) == 2, 60.0)
        await world.ready()
        images = {pod["spec"]["containers"][0]["image"] for pod in world.pods()}
        assert images == {CONFIG.runtime_image}
        world.apply(**NEW)
        await world.ready()
        await world.settled()
        images = {pod["spec"]["containers"][0]["image"] for pod in world.pods()}
        assert images == {world.config.runtime_image}

    play(scenario)


def test_only_revisions_that_something_is_of_stay_on_record() -> None:
    async def scenario(world: World) -> None:
        for length in (256, 512, 1024, 512):
            world.apply(replicas=2, engine={"maxModelLen": length})
            await world.ready()
        await world.settled()
        (record,) = records(world)
        (revision,) = {pod["metadata"]["labels"][labels.REVISION] for pod in world.pods()}
        assert record["metadata"]["labels"][labels.REVISION] == revision == world.status()["revision"]
        assert record["revision"] > 1
        world.apply(suspend=True)
        await until(lambda: not world.pods(), 300.0)
        await world.settled()
        assert [found["metadata"]["uid"] for found in records(world)] == [record["metadata"]["uid"]]

    play(scenario)


def test_a_deleted_record_of_the_wanted_revision_is_written_again() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=1, **OLD)
        await world.ready()
        (record,) = records(world)
        delete(world.api, "controllerrevisions", record["metadata"]["name"])
        await until(lambda: records(world), 10.0)
        names = world.pod_names()
        world.apply(replicas=2)
        await world.ready()
        assert set(names) < set(world.pod_names())

    play(scenario)


def test_without_a_record_held_pods_stay_and_the_status_says_what_to_do() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2, **OLD)
        await world.ready()
        world.apply(**NEW, rollout={"paused": True})
        await world.settled()
        (record,) = records(world)
        delete(world.api, "controllerrevisions", record["metadata"]["name"])
        await world.settled()
        assert len(world.pods()) == 2
        assert not records(world)
        await evict(world)
        await until(lambda: world.condition("Stalled").get("reason") == "RevisionUnrecorded", 30.0)
        assert "spec.rollout.paused" in world.condition("Stalled")["message"]
        assert len(world.pods()) == 1
        world.apply(rollout={"paused": False})
        await world.ready()
        await world.settled()
        assert all(any("2048" in arg for arg in engine_args(pod)) for pod in world.pods())

    play(scenario)


CHANGES: list[tuple[str, Hook, str]] = [
    ("refused", refuse("controllerrevisions", lambda _: "no revisions here"), "Refused"),
    ("unlabelled", relabel("controllerrevisions", deployment=None), "ChangedByAdmission"),
    ("relabelled", relabel("controllerrevisions", revision="x"), "ChangedByAdmission"),
    ("unowned", prune("controllerrevisions", "metadata", "ownerReferences"), "ChangedByAdmission"),
    ("emptied", prune("controllerrevisions", "data", "template"), "ChangedByAdmission"),
]


@pytest.mark.parametrize(("hook", "reason"), [pytest.param(*case[1:], id=case[0]) for case in CHANGES])
def test_without_a_record_nothing_is_replaced(hook: Hook, reason: str) -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2, **OLD)
        await world.ready()
        names = world.pod_names()
        world.api.admission.append(hook)
        world.apply(**NEW)
        await until(lambda: world.condition("Stalled").get("reason") == reason, 60.0)
        assert "controllerrevision" in world.condition("Stalled")["message"]
        await pass_time(120.0)
        assert world.pod_names() == names
        # What is there is kept alive meanwhile.
        await evict(world)
        await until(lambda: len(world.pods()) == 2 and min(world.num_serving[-1:]) == 2, 120.0)
        assert all(any("1024" in arg for arg in engine_args(pod)) for pod in world.pods())
        world.api.admission.clear()
        await world.ready()
        await world.settled()
        assert all(any("2048" in arg for arg in engine_args(pod)) for pod in world.pods())

    play(scenario)


def test_a_quota_for_records_is_said() -> None:
    async def scenario(world: World) -> None:
        world.api.admission.append(quota("controllerrevisions", 0, lambda: 0))
        world.apply()
        await until(lambda: world.condition("Stalled").get("reason") == "Refused", 30.0)
        assert "exceeded quota" in world.condition("Stalled")["message"]
        assert not world.pods()

    play(scenario)


def test_what_a_deleted_one_of_this_name_left_on_record_is_in_nobodys_way() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=1)
        await world.ready()
        (left,) = records(world)
        await pass_time(0.01)
        # The garbage collector comes by at other moments.
        world.delete()
        world.apply(replicas=1)
        await until(lambda: len(records(world)) == 2, 10.0)
        world.api.storage.collect_garbage()
        await world.ready()
        assert left["metadata"]["uid"] not in {found["metadata"]["uid"] for found in records(world)}

    play(scenario)


def test_somebody_elses_revisions_are_left_alone() -> None:
    def theirs(name: str, **metadata: Any) -> Object:
        common = {"namespace": "default", "name": name, "labels": {labels.DEPLOYMENT: NAME}, **metadata}
        return {"metadata": common, "revision": 1, "data": {"template": {"spec": {"x": 1}}}}

    async def scenario(world: World) -> None:
        other = put(
            world.api, "services", {"metadata": {"namespace": "default", "name": "x"}, "spec": {"ports": []}}
        )
        uid = other["metadata"]["uid"]
        owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": NAME, "uid": uid, "controller": True}
        put(world.api, "controllerrevisions", theirs("owned", ownerReferences=[owner]))
        put(world.api, "controllerrevisions", theirs("bare"))
        world.apply(replicas=1)
        await world.ready()
        world.apply(**NEW)
        await world.ready()
        await world.settled()
        assert get(world.api, "controllerrevisions", "owned") is not None
        assert get(world.api, "controllerrevisions", "bare") is not None
        assert not [write for write in writes_of(world) if write.startswith(("DELETE bare", "DELETE owned"))]

    play(scenario)
