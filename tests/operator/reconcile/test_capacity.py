"""A cluster without room to spare: what an edit, a broken revision and a full node come to."""

from collections.abc import Callable

from fakeapi.kubelet import is_ready
from operator_world import Object, World, play
from virtual_time import pass_time, until

from stoker_operator.api import labels

GPU = {"accelerator": {"perPod": 1}}
BROKEN = {"engine": {"maxModelLen": 512}}
MENDED = {"engine": {"maxModelLen": 1024}}


def one_gpu(world: World) -> None:
    world.kubelet.add_node("node-0", allocatable={"nvidia.com/gpu": "1"})


def has_argument(argument: str) -> Callable[[Object], bool]:
    return lambda pod: argument in pod["spec"]["containers"][0]["args"]


def revisions(world: World) -> set[str]:
    return {pod["metadata"]["labels"][labels.REVISION] for pod in world.pods()}


def test_a_broken_model_on_a_full_gpu_is_repaired_by_an_edit() -> None:
    async def scenario(world: World) -> None:
        one_gpu(world)
        world.kubelet.is_broken = has_argument("--max-model-len=512")
        world.apply(**GPU, **BROKEN)
        await until(lambda: world.condition("Stalled").get("reason") == "ContainerCrashed", 60.0)
        world.apply(**MENDED)
        await world.ready(deadline_s=30.0)
        await world.settled()
        assert len(world.pods()) == 1

    play(scenario)


def test_a_broken_edit_on_a_full_gpu_takes_nothing_that_answered_before() -> None:
    async def scenario(world: World) -> None:
        one_gpu(world)
        world.apply(**GPU)
        await world.ready()
        await pass_time(3600.0)
        (old,) = world.pods()
        # It answered yesterday; its container was restarted and loads again.
        broken = {old["metadata"]["name"]}
        world.kubelet.is_broken = lambda pod: pod["metadata"]["name"] in broken
        await until(lambda: not is_ready(world.pods()[0]))
        world.apply(**BROKEN)
        await pass_time(600.0)
        assert old["metadata"]["uid"] in {pod["metadata"]["uid"] for pod in world.pods()}
        broken.clear()
        await until(lambda: any(map(is_ready, world.pods())), 10.0)

    play(scenario)


def test_the_status_names_the_own_pod_that_holds_what_is_lacking() -> None:
    async def scenario(world: World) -> None:
        one_gpu(world)
        world.apply(**GPU)
        await world.ready()
        (old,) = world.pod_names()
        world.apply(**MENDED)
        await until(lambda: world.condition("Ready").get("reason") == "Unschedulable")
        message = world.condition("Ready")["message"]
        assert f"own pod {old} of an older revision holds nvidia.com/gpu" in message
        assert "maxSurge: 0" in message
        assert "maxUnavailable: 1" in message
        world.apply(rollout={"maxSurge": 0, "maxUnavailable": 1})
        await world.ready()
        await world.settled()
        assert len(revisions(world)) == 1

    play(scenario)
