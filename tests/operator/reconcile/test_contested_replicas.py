"""Two who set the replicas of one ModelDeployment: who scales, and whoever applies a manifest."""

from fakeapi.client import everything, get
from operator_world import NAME, Object, World, play
from replica_writers import FLUX, HPA, KUBECTL, kubectl_apply, scale, server_apply
from virtual_time import pass_time, until

KIND = "ReplicasContested"


def generation(world: World) -> int:
    model = get(world.api, "modeldeployments", NAME)
    assert model is not None
    return int(model["metadata"]["generation"])


def warnings(world: World) -> list[Object]:
    return [event for event in everything(world.api, "events") if event["reason"] == KIND]


def test_a_scaler_alone_is_told_nothing() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        await scale(world, 2)
        await until(lambda: world.status()["readyReplicas"] == 2)
        await world.settled()
        assert world.condition(KIND) == {}
        assert warnings(world) == []

    play(scenario)


def test_a_manifest_that_kubectl_applied_with_replicas_is_named_until_they_are_left_out() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        kubectl_apply(world, replicas=1)
        await world.ready()
        assert world.condition(KIND) == {}
        await scale(world, 2)
        await until(lambda: world.status()["readyReplicas"] == 2)
        assert HPA in world.condition(KIND)["message"]
        assert KUBECTL in world.condition(KIND)["message"]
        assert world.is_ready(), "whoever wrote last is followed"
        (event,) = warnings(world)
        assert event["type"] == "Warning"
        kubectl_apply(world, suspend=False)
        await until(lambda: world.condition(KIND) == {}, 10.0)
        await world.settled()
        assert world.status()["readyReplicas"] == 2

    play(scenario)


def test_a_field_that_is_shared_shows_although_nothing_else_changes() -> None:
    async def scenario(world: World) -> None:
        world.apply(suspend=False)
        await scale(world, 2)
        await world.ready()
        await world.settled()
        before = generation(world)
        await server_apply(world, suspend=False, replicas=2)
        await until(lambda: FLUX in world.condition(KIND).get("message", ""), 10.0)
        await world.settled()
        await server_apply(world, suspend=False)
        await until(lambda: world.condition(KIND) == {}, 10.0)
        await world.settled()
        assert generation(world) == before
        assert world.status()["readyReplicas"] == 2

    play(scenario)


def test_an_operator_that_starts_anew_says_it_again() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        kubectl_apply(world, replicas=1)
        await scale(world, 2)
        await until(lambda: world.condition(KIND) != {})
        world.kill()
        await until(lambda: world.num_starts == 2)
        await world.settled()
        assert world.condition(KIND) != {}
        kubectl_apply(world, suspend=False)
        await until(lambda: world.condition(KIND) == {}, 10.0)

    play(scenario)


def test_a_fight_makes_no_more_writes_than_news() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        for _ in range(20):
            kubectl_apply(world, replicas=1)
            await pass_time(15.0)
            await scale(world, 2)
            await until(lambda: world.condition(KIND) != {}, 10.0)
            await pass_time(15.0)
        assert len(warnings(world)) == 1, "one Event, which counts"

    play(scenario)
