"""Budgets that go: with a ModelDeployment that is held in its deletion, and where no budget is wanted."""

from fakeapi import faults
from fakeapi.client import get, put
from fakeapi.faults import Call, Fault
from operator_world import NAME, World, play, writes_of
from virtual_time import pass_time, until

HOLD = "backup.example/hold"


def budget(world: World) -> object:
    return get(world.api, "poddisruptionbudgets", NAME)


def hold(world: World, *finalizers: str) -> None:
    put(
        world.api,
        "modeldeployments",
        {"metadata": {"name": NAME, "namespace": "default", "finalizers": list(finalizers) or None}},
    )


async def serving(world: World) -> None:
    world.apply(replicas=2)
    await world.ready()
    await world.settled()


def test_the_budget_goes_first_and_the_pods_serve_until_the_object_is_gone() -> None:
    async def scenario(world: World) -> None:
        await serving(world)
        hold(world, HOLD)
        start = len(world.api.writes)
        names = world.pod_names()
        world.delete()
        await until(lambda: budget(world) is None, 5.0)
        await pass_time(1800.0)
        world.kill()
        await pass_time(1800.0)
        assert writes_of(world, start) == [f"DELETE poddisruptionbudgets/{NAME}"]
        assert world.pod_names() == names
        assert get(world.api, "services", NAME) is not None
        hold(world)
        await until(lambda: not world.picture())

    play(scenario)


def test_a_deletion_while_the_operator_was_away_is_seen_when_it_comes_back() -> None:
    async def scenario(world: World) -> None:
        await serving(world)
        hold(world, HOLD)
        world.stop()
        world.delete()
        await pass_time(600.0)
        assert budget(world) is not None
        world.restart()
        await until(lambda: budget(world) is None, 10.0)

    play(scenario)


def test_a_deletion_of_the_budget_that_fails_is_tried_again_with_a_back_off() -> None:
    def refuse(call: Call) -> Fault | None:
        return Fault.SERVER_ERROR if call.method == "DELETE" else None

    async def scenario(world: World) -> None:
        await serving(world)
        hold(world, HOLD)
        world.api.injector = refuse
        world.delete()
        start = len(world.api.writes)
        await pass_time(120.0)
        assert 2 <= len(writes_of(world, start)) <= 24
        world.api.injector = faults.no_fault
        await until(lambda: budget(world) is None, 60.0)

    play(scenario)


def test_an_invalid_one_that_is_deleted_loses_its_budget_too() -> None:
    async def scenario(world: World) -> None:
        await serving(world)
        hold(world, HOLD)
        world.apply(model={"source": "ftp://nowhere"})
        await until(lambda: world.condition("Stalled").get("reason") == "InvalidSpec")
        world.delete()
        await until(lambda: budget(world) is None, 5.0)

    play(scenario)


def test_a_budget_with_room_or_none_restarts_no_pod() -> None:
    async def scenario(world: World) -> None:
        await serving(world)
        names = world.pod_names()
        start = len(world.api.writes)
        world.apply(podDisruptionBudget={"maxUnavailable": 1})
        await world.settled()
        stored = get(world.api, "poddisruptionbudgets", NAME)
        assert stored is not None
        assert stored["spec"]["minAvailable"] == 1
        world.apply(podDisruptionBudget={"maxUnavailable": "100%"})
        await world.settled()
        assert budget(world) is None
        assert world.pod_names() == names
        children = [write for write in writes_of(world, start) if not write.endswith("/status")]
        assert children == [f"PATCH poddisruptionbudgets/{NAME}", f"DELETE poddisruptionbudgets/{NAME}"]
        world.apply(podDisruptionBudget={"maxUnavailable": None})
        await until(lambda: budget(world) is not None)

    play(scenario)
