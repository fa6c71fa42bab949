"""Children without an owner: `kubectl delete --cascade=orphan`, and backups, which strip owner references."""

from __future__ import annotations

from fakeapi.client import delete, everything, get, put
from operator_world import NAME, Object, World, play, writes_of
from virtual_time import pass_time, until

KINDS = ("pods", "services", "poddisruptionbudgets", "controllerrevisions")


def orphan(world: World) -> list[Object]:
    """Delete the ModelDeployment and keep its children; returns the pods."""
    delete(world.api, "modeldeployments", NAME)
    for plural in KINDS:
        for child in everything(world.api, plural):
            bare = {**child["metadata"], "ownerReferences": []}
            put(world.api, plural, {"metadata": bare})
    return world.pods()


def owners(world: World) -> set[str]:
    children = [child for plural in KINDS for child in everything(world.api, plural)]
    return {owner["uid"] for child in children for owner in child["metadata"]["ownerReferences"]}


def uids(pods: list[Object]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def test_orphans_are_adopted_and_go_on_serving() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        world.stop()
        before = orphan(world)
        model = world.apply(replicas=2)
        start = len(world.api.writes)
        world.restart()
        await world.ready()
        await world.settled()
        assert uids(world.pods()) == uids(before)
        assert owners(world) == {model["metadata"]["uid"]}
        assert min(world.num_serving[-5:]) == 2
        assert not [write for write in writes_of(world, start) if write.startswith("POST default/pods")]

    play(scenario)


def test_a_running_operator_adopts_too() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        before = orphan(world)
        await pass_time(5.0)
        assert uids(world.pods()) == uids(before), "without a ModelDeployment nothing happens to them"
        model = world.apply(replicas=2)
        await world.ready()
        await world.settled()
        assert uids(world.pods()) == uids(before)
        assert owners(world) == {model["metadata"]["uid"]}

    play(scenario)


def test_orphans_of_an_older_spec_are_rolled_and_none_goes_before() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2, engine={"maxModelLen": 1024})
        await world.ready()
        before = orphan(world)
        world.apply(replicas=2, engine={"maxModelLen": 2048})
        world.num_serving.clear()
        await world.ready()
        await world.settled()
        assert not uids(world.pods()) & uids(before)
        assert min(world.num_serving) == 2

    play(scenario)


def test_a_paused_one_is_restored_with_the_revision_that_it_held() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2, engine={"maxModelLen": 1024})
        await world.ready()
        paused: Object = {"engine": {"maxModelLen": 2048}, "rollout": {"paused": True}}
        world.apply(**paused)
        await world.settled()
        before = orphan(world)
        world.apply(replicas=3, **paused)
        await until(lambda: len(world.pods()) == 3, 60.0)
        await world.settled()
        assert uids(before) < uids(world.pods())
        assert len({str(pod["spec"]["containers"][0]["args"]) for pod in world.pods()}) == 1

    play(scenario)


def test_what_we_did_not_make_is_not_adopted() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=1)
        await world.ready()
        (pod,) = world.pods()
        copied = {"namespace": "default", "name": "debug", "labels": dict(pod["metadata"]["labels"])}
        put(world.api, "pods", {"metadata": copied, "spec": pod["spec"]})
        await world.settled()
        found = get(world.api, "pods", "debug")
        assert found is not None
        assert "ownerReferences" not in found["metadata"]

    play(scenario)


def test_nothing_is_given_to_an_owner_that_is_gone() -> None:
    """What gets an owner that does not exist, the garbage collector deletes."""

    async def scenario(world: World) -> None:
        world.apply(replicas=1)
        await world.ready()
        world.stop()
        orphan(world)
        first = world.apply(replicas=1)
        world.restart()
        await until(lambda: is_read_live(world), 30.0)
        delete(world.api, "modeldeployments", NAME)
        world.api.storage.collect_garbage()
        await pass_time(10.0)
        world.api.storage.collect_garbage()
        adopted = [uid for uid in owners_or_none(world) if uid == first["metadata"]["uid"]]
        assert not adopted

    play(scenario)


def is_read_live(world: World) -> bool:
    return any(call.method == "GET" and call.path.endswith(f"/{NAME}") for call in world.api.calls)


def owners_or_none(world: World) -> list[str]:
    children = [child for plural in KINDS for child in everything(world.api, plural)]
    return [owner["uid"] for child in children for owner in child["metadata"].get("ownerReferences", ())]
