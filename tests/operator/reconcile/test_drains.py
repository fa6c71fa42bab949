"""Pods that leave: told to drain in each pass, watched where they can be, and named where they cannot."""

from fakeapi.client import everything, put
from fakeapi.faults import Call, Fault
from fakeapi.kubelet import is_ready, is_serving
from operator_world import NAME, Object, World, play
from virtual_time import pass_time, until

from stoker_operator.api import labels

OTHER = {"engine": {"maxModelLen": 512}}
GRACE = {"pod": {"terminationGracePeriodSeconds": 120}}


def notes(world: World, reason: str) -> list[str]:
    """What Events with a reason say, with their type."""
    found = [event for event in everything(world.api, "events") if event["reason"] == reason]
    return [f"{event['type']}: {event['note']}" for event in found]


def draining(world: World) -> list[Object]:
    return [pod for pod in world.pods() if pod["metadata"]["labels"][labels.SERVING] == "false"]


def test_clients_with_pools_leave_a_pod_that_is_told_to_drain() -> None:
    async def scenario(world: World) -> None:
        # Their connections stay where they are until the engine closes them.
        world.kubelet.in_flight = lambda name: 0 if name in world.kubelet.told else 5
        world.apply(replicas=3, **GRACE)
        await world.ready()
        old = set(world.pod_names())
        world.num_serving.clear()
        world.apply(**OTHER)
        await until(lambda: not old & set(world.pod_names()), 40.0)
        assert set(world.kubelet.told) == old

    world = play(scenario)
    assert min(world.num_serving) == 3
    assert len([note for note in notes(world, "PodDeleted") if "(Drained)" in note]) == 3


def test_only_pods_that_leave_are_told() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=3)
        await world.ready()
        await pass_time(600.0)
        assert world.kubelet.told == []
        world.apply(replicas=2)
        await until(lambda: len(world.pods()) == 2)
        assert not set(world.kubelet.told) & set(world.pod_names())

    play(scenario)


def test_an_operator_that_dies_between_the_label_and_the_call_tells_the_pod_later() -> None:
    def die(call: Call) -> Fault | None:
        is_stop = call.method == "PATCH" and "/pods/" in call.path
        return Fault.CRASH_AFTER if is_stop and not crashed else None

    crashed: list[bool] = []

    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        world.api.injector = die
        world.kubelet.in_flight = lambda name: 1
        world.apply(replicas=1)
        await until(lambda: world.num_starts == 2, step_s=0.01)
        crashed.append(True)
        (leaving,) = draining(world)
        await until(lambda: leaving["metadata"]["name"] in world.kubelet.told, 10.0)
        world.kubelet.in_flight = lambda name: 0
        await until(lambda: len(world.pods()) == 1, 10.0)

    play(scenario)


def test_a_pod_is_told_again_for_as_long_as_it_drains() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.in_flight = lambda name: 1
        world.apply(replicas=2, **GRACE)
        await world.ready()
        world.apply(replicas=1)
        await until(lambda: len(draining(world)) == 1)
        await pass_time(60.0)
        assert len(world.kubelet.told) >= 30
        assert len(world.pods()) == 2

    play(scenario)


def test_an_engine_from_before_is_only_asked() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.is_older = lambda name: True
        world.kubelet.in_flight = lambda name: 2
        world.apply(replicas=2, **GRACE)
        await world.ready()
        world.apply(replicas=1)
        await pass_time(30.0)
        assert len(world.pods()) == 2
        assert all(map(is_ready, world.pods()))
        world.kubelet.in_flight = lambda name: 0
        await until(lambda: len(world.pods()) == 1, 10.0)
        assert world.condition("DrainUnobserved") == {}

    assert notes(play(scenario), "DrainUnobserved") == []


def test_a_pod_that_cannot_be_reached_is_told_of_and_goes_at_its_deadline() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.unreachable = lambda name: "Connection refused"
        world.apply(replicas=2, **GRACE)
        await world.ready()
        world.apply(replicas=1)
        await until(lambda: len(draining(world)) == 1)
        await until(lambda: world.condition("DrainUnobserved"), 10.0)
        assert "Connection refused" in world.condition("DrainUnobserved")["message"]
        assert world.condition("Ready")["status"] == "True"
        await pass_time(100.0)
        assert len(world.pods()) == 2
        await until(lambda: len(world.pods()) == 1, 20.0)
        await world.settled()
        assert world.condition("DrainUnobserved") == {}
        assert world.kubelet.told == []

    world = play(scenario)
    (warning,) = notes(world, "DrainUnobserved")
    assert warning.startswith("Warning: pod smol-")
    (deleted,) = notes(world, "PodDeleted")
    assert deleted.startswith("Warning: ")
    assert "(DrainDeadline)" in deleted


def test_a_network_that_heals_ends_the_wait() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.unreachable = lambda name: "no answer within 1 s"
        world.apply(replicas=2, **GRACE)
        await world.ready()
        world.apply(replicas=1)
        await until(lambda: world.condition("DrainUnobserved"), 20.0)
        world.kubelet.unreachable = lambda name: ""
        await until(lambda: len(world.pods()) == 1, 10.0)
        await until(lambda: not world.condition("DrainUnobserved"), 5.0)

    assert "(Drained)" in notes(play(scenario), "PodDeleted")[0]


def test_an_answer_that_is_missing_now_and_then_writes_nothing() -> None:
    calls: list[str] = []

    def sometimes(name: str) -> str:
        calls.append(name)
        return "no answer within 1 s" if len(calls) % 2 else ""

    async def scenario(world: World) -> None:
        world.kubelet.in_flight = lambda name: 1
        world.kubelet.unreachable = sometimes
        world.apply(replicas=2, **GRACE)
        await world.ready()
        world.apply(replicas=1)
        await until(lambda: len(draining(world)) == 1)
        await pass_time(5.0)
        num_writes = len(world.api.writes)
        await pass_time(90.0)
        assert len(world.api.writes) == num_writes
        assert len(calls) > 10

    assert notes(play(scenario), "DrainUnobserved") == []


def test_a_service_with_slow_load_balancers_keeps_pods_longer() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2, service={"drainSeconds": 60})
        await world.ready()
        world.apply(replicas=1)
        await until(lambda: len(draining(world)) == 1)
        await pass_time(58.0)
        assert len(world.pods()) == 2
        await until(lambda: len(world.pods()) == 1, 4.0)

    play(scenario)


def test_a_label_that_is_given_back_does_not_bring_back_a_drained_engine() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.in_flight = lambda name: 1
        world.apply(replicas=2, **GRACE)
        await world.ready()
        name = world.pod_names()[0]
        metadata = {"name": name, "namespace": "default"}
        put(world.api, "pods", {"metadata": {**metadata, "labels": {labels.SERVING: "false"}}})
        await until(lambda: name in world.kubelet.told)
        put(world.api, "pods", {"metadata": {**metadata, "labels": {labels.SERVING: "true"}}})
        await until(lambda: sum(map(is_serving, world.pods())) == 2, 30.0)
        world.kubelet.in_flight = lambda name: 0
        await until(lambda: name not in world.pod_names(), 10.0)
        assert world.is_ready(NAME)

    play(scenario)
