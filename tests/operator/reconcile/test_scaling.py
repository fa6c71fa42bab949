"""Scaling while a model serves: what Ready, Reconciling and Events say meanwhile."""

from fakeapi.client import everything
from operator_world import Object, World, play
from virtual_time import pass_time, until

from stoker_operator.api import labels


def ready_since(world: World) -> str:
    return str(world.condition("Ready")["lastTransitionTime"])


def is_second(pod: Object) -> bool:
    return str(pod["metadata"]["name"]).endswith("-1")


def test_a_scale_up_keeps_ready_while_the_new_pod_loads() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        await world.settled()
        since = ready_since(world)
        world.kubelet.is_loading = is_second
        world.apply(replicas=2)
        await until(lambda: world.condition("Reconciling").get("reason") == "LoadingModel", 10.0)
        await pass_time(300.0)
        assert world.condition("Ready")["status"] == "True"
        assert world.condition("Ready")["observedGeneration"] == 2
        assert world.status()["promisedReplicas"] == 1
        world.kubelet.is_loading = lambda pod: False
        await until(lambda: world.condition("Reconciling")["status"] == "False", 10.0)
        assert world.status()["promisedReplicas"] == 2
        assert ready_since(world) == since

    play(scenario)


def test_an_operator_that_restarts_in_a_scale_up_keeps_the_promise() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        world.kubelet.is_loading = is_second
        world.apply(replicas=2)
        await until(lambda: len(world.pods()) == 2)
        since = ready_since(world)
        world.kill()
        await until(lambda: world.num_starts == 2)
        await pass_time(60.0)
        assert (world.condition("Ready")["status"], ready_since(world)) == ("True", since)

    play(scenario)


def test_another_revision_is_ready_when_all_of_it_answer() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        world.kubelet.is_loading = lambda pod: "--max-model-len=512" in pod["spec"]["containers"][0]["args"]
        world.apply(engine={"maxModelLen": 512})
        await until(lambda: world.condition("Ready")["status"] == "False", 10.0)
        assert world.status()["promisedReplicas"] == 0
        world.kubelet.is_loading = lambda pod: False
        await world.ready()
        revisions = {pod["metadata"]["labels"][labels.REVISION] for pod in world.pods()}
        assert world.status()["revision"] in revisions
        assert world.status()["promisedReplicas"] == 2

    play(scenario)


def test_a_scale_up_without_room_is_told_as_an_event() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.add_node("node-0", allocatable={"nvidia.com/gpu": "1"})
        world.apply(accelerator={"perPod": 1})
        await world.ready()
        world.apply(replicas=2)
        await until(lambda: world.condition("Reconciling").get("reason") == "Unschedulable", 10.0)
        assert world.condition("Ready")["status"] == "True"
        told = [event for event in everything(world.api, "events") if event["reason"] == "Unschedulable"]
        assert [event["type"] for event in told] == ["Warning"]

    play(scenario)
