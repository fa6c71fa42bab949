"""An operator of single namespaces: one that may not be read holds up no other, and is told of."""

import logging
from dataclasses import replace

import pytest
from fakeapi.client import delete, get
from fakeapi.faults import Call, Fault, Injector
from operator_world import CONFIG, NAME, World, play
from prometheus_client.exposition import generate_latest
from virtual_time import pass_time, until

THREE = replace(CONFIG, watch_namespaces=("a", "b", "c"))
# The longest wait between two tries of a watch, and the pass.
BACK_S = 35.0


def forbidden(*parts: str) -> Injector:
    """Refuse the reads of paths that have all these parts in them."""

    def inject(call: Call) -> Fault | None:
        is_meant = not call.is_write and all(part in call.path for part in parts)
        return Fault.FORBIDDEN if is_meant else None

    return inject


def namespaces_of_pods(world: World) -> list[str]:
    return sorted(pod["metadata"]["namespace"] for pod in world.pods())


def writes_in(world: World, namespace: str) -> int:
    return sum(f"/namespaces/{namespace}/" in call.path for call in world.api.writes)


def page(world: World) -> str:
    return generate_latest(world.metrics.registry).decode()


def readiness(world: World) -> tuple[bool, dict[str, object]]:
    assert world.controller is not None
    return world.controller.readiness()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "RoleBinding" in record.getMessage()]


@pytest.mark.parametrize("kind", ["", "/pods", "/modeldeployments", "/poddisruptionbudgets"])
def test_a_namespace_that_may_not_be_read_holds_up_no_other(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.api.injector = forbidden("/namespaces/b/", kind)
        for namespace in ("a", "b", "c"):
            world.apply(NAME, namespace)
        await until(lambda: namespaces_of_pods(world) == ["a", "c"], 2.0)
        await pass_time(600.0)
        assert writes_in(world, "b") == 0
        is_ready, shown = readiness(world)
        assert is_ready
        assert shown["waiting_for"] == []
        assert list(shown["blocked"]) == ["b"]  # type: ignore[call-overload]
        assert "403 Forbidden" in shown["blocked"]["b"]  # type: ignore[index]
        assert world.controller is not None
        waiting_for = world.controller.health()["waiting_for"]
        assert waiting_for
        assert all("namespace b" in name for name in waiting_for)
        resource = kind.strip("/") or "pods"
        assert f'stoker_operator_scope_synced{{namespace="b",resource="{resource}"}} 0.0' in page(world)
        assert f'stoker_operator_scope_synced{{namespace="a",resource="{resource}"}} 1.0' in page(world)

        world.api.injector = lambda call: None
        await until(lambda: namespaces_of_pods(world) == ["a", "b", "c"], BACK_S)
        assert readiness(world) == (True, {"waiting_for": []})
        assert f'stoker_operator_scope_synced{{namespace="b",resource="{resource}"}} 1.0' in page(world)

    with caplog.at_level(logging.WARNING):
        play(scenario, config=THREE)
    (warning,) = warnings(caplog)
    assert warning.startswith("namespace b may not be read (403 Forbidden")


@pytest.mark.parametrize("kind", ["", "/pods", "/services"])
def test_nothing_is_done_on_what_may_not_be_read_any_more(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        for namespace in ("a", "b"):
            world.apply(NAME, namespace)
        await until(lambda: namespaces_of_pods(world) == ["a", "b"])
        await world.settled()
        world.api.injector = forbidden("/namespaces/b/", kind)
        world.api.break_watches()
        await until(lambda: "blocked" in readiness(world)[1])
        num_writes = writes_in(world, "b")
        (name,) = [pod["metadata"]["name"] for pod in world.pods() if pod["metadata"]["namespace"] == "b"]
        delete(world.api, "pods", name, "b", grace_s=0)
        for namespace in ("a", "b"):
            world.apply(NAME, namespace, replicas=2)
        await pass_time(600.0)
        assert namespaces_of_pods(world) == ["a", "a"]
        assert writes_in(world, "b") == num_writes
        assert readiness(world)[0]

        world.api.injector = lambda call: None
        await until(lambda: namespaces_of_pods(world) == ["a", "a", "b", "b"], BACK_S)
        assert "blocked" not in readiness(world)[1]

    with caplog.at_level(logging.WARNING):
        play(scenario, config=THREE)
    assert len(warnings(caplog)) == 1


def test_what_was_deleted_in_a_closed_namespace_is_forgotten_when_it_opens() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.in_flight = lambda name: 1
        world.apply(NAME, "b", replicas=1, pod={"terminationGracePeriodSeconds": 3600})
        await until(
            lambda: (
                (get(world.api, "modeldeployments", "smol", "b") or {}).get("status", {}).get("readyReplicas")
            )
        )
        world.apply(NAME, "b", replicas=0)
        await until(lambda: world.kubelet.told)
        world.api.injector = forbidden("/namespaces/b/")
        world.api.break_watches()
        await until(lambda: "blocked" in readiness(world)[1])
        delete(world.api, "modeldeployments", "smol", "b")
        world.api.injector = lambda call: None
        await until(lambda: "blocked" not in readiness(world)[1], BACK_S)
        await pass_time(10.0)
        num_told = len(world.kubelet.asked_by)
        await pass_time(60.0)
        assert len(world.kubelet.asked_by) == num_told

    play(scenario, config=THREE)


def test_an_operator_that_may_read_no_namespace_is_not_ready() -> None:
    async def scenario(world: World) -> None:
        world.api.injector = forbidden("/namespaces/")
        await pass_time(60.0)
        is_ready, shown = readiness(world)
        assert not is_ready
        assert sorted(shown["blocked"]) == ["a", "b", "c"]  # type: ignore[call-overload]

    play(scenario, config=THREE)


def test_the_whole_cluster_is_waited_for_and_goes_on_with_what_it_saw() -> None:
    async def scenario(world: World) -> None:
        world.api.injector = forbidden("/services")
        world.apply()
        await pass_time(60.0)
        assert namespaces_of_pods(world) == []
        assert readiness(world) == (False, {"waiting_for": ["services"]})
        world.api.injector = lambda call: None
        await until(lambda: namespaces_of_pods(world) == ["default"], BACK_S)
        await world.settled()
        world.api.injector = forbidden("/services")
        world.api.break_watches()
        await until(lambda: 'resource="services"} 0.0' in page(world))
        world.apply(replicas=2)
        await until(lambda: namespaces_of_pods(world) == ["default", "default"])
        assert readiness(world)[0]

    play(scenario)
