"""What goes wrong for longer than a moment: errors of the API server, and hands that change what is ours."""

import asyncio
from collections.abc import Callable

import pytest
from fakeapi import faults
from fakeapi.client import everything, get, put
from fakeapi.faults import Call, Fault
from fakeapi.storage import Change
from operator_world import NAME, Object, World, play, writes_of
from virtual_time import pass_time, until

from stoker_operator.api import labels

METADATA = {"name": NAME, "namespace": "default"}


def events_of(world: World) -> set[tuple[str, str]]:
    return {(event["type"], event["reason"]) for event in everything(world.api, "events")}


def creations_of_pods(fault: Fault) -> Callable[[Call], Fault | None]:
    return lambda call: fault if call.method == "POST" and call.path.endswith("/pods") else None


def relabel(world: World, plural: str, name: str, **changed: str | None) -> Object:
    keys = {f"stoker.dev/{key}": value for key, value in changed.items()}
    return put(world.api, plural, {"metadata": {"name": name, "namespace": "default", "labels": keys}})


def test_an_error_that_stays_is_told_and_tried_again() -> None:
    async def scenario(world: World) -> None:
        world.api.injector = creations_of_pods(Fault.SERVER_ERROR)
        world.apply()
        await until(lambda: world.condition("Ready"), 0.2, step_s=0.01)
        assert world.condition("Ready")["status"] == "False"
        await until(lambda: world.condition("Ready")["reason"] == "ApiError", 5.0)
        assert "create pod smol-" in world.condition("Ready")["message"]
        assert "500 InternalError: injected" in world.condition("Ready")["message"]
        assert world.condition("Reconciling")["status"] == "True"
        assert world.condition("Stalled")["status"] == "False"
        start = len(world.api.writes)
        await pass_time(300.0)
        tries = writes_of(world, start)
        assert 5 <= len(tries) <= 15
        assert set(tries) == {"POST default/pods"}, "the same error is written once"
        world.api.injector = faults.no_fault
        await world.ready(deadline_s=90.0)

    play(scenario)


def test_ready_needs_the_service() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        world.api.injector = lambda call: (
            Fault.SERVER_ERROR if call.is_write and "services" in call.path else None
        )
        world.api.storage.delete("services", ("default", NAME))
        await until(lambda: world.condition("Ready")["reason"] == "ApiError", 10.0)
        assert "apply service smol" in world.condition("Ready")["message"]
        world.api.injector = faults.no_fault
        await world.ready(deadline_s=90.0)

    play(scenario)


def test_one_refusal_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    # A new namespace refuses pods until its service account is there.
    monkeypatch.setitem(faults.REFUSALS, Fault.CONFLICT, (403, "Forbidden"))

    async def scenario(world: World) -> None:
        world.api.injector = creations_of_pods(Fault.CONFLICT)
        world.apply()
        await until(lambda: "POST default/pods" in writes_of(world), step_s=0.01)
        await until(lambda: world.condition("Ready"), 0.2, step_s=0.01)
        assert world.condition("Stalled")["status"] == "False"
        world.api.injector = faults.no_fault
        await world.ready(deadline_s=30.0)

    world = play(scenario)
    assert "Warning" not in {kind for kind, _ in events_of(world)}


@pytest.mark.parametrize("plural", ["services", "poddisruptionbudgets"])
def test_a_child_that_lost_our_label_is_mended_and_later_edits_reach_it(plural: str) -> None:
    def is_labelled(world: World) -> bool:
        child = get(world.api, plural, NAME)
        return child is not None and child["metadata"]["labels"].get(labels.DEPLOYMENT) == NAME

    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        uid = (get(world.api, plural, NAME) or {})["metadata"]["uid"]
        relabel(world, plural, NAME, deployment=None)
        await until(lambda: is_labelled(world), 5.0)
        assert world.condition("Stalled")["status"] == "False"
        world.stop()
        relabel(world, plural, NAME, deployment=None)
        world.apply(replicas=3, service={"port": 8080})
        world.restart()
        await until(lambda: is_labelled(world), 5.0)
        await world.ready()
        await world.settled()
        child = get(world.api, plural, NAME) or {}
        assert child["metadata"]["uid"] == uid
        if plural == "services":
            assert [port["port"] for port in child["spec"]["ports"]] == [8080]
        else:
            assert child["spec"]["minAvailable"] == 3

    play(scenario)


def test_a_pod_taken_out_of_sight_is_replaced_kept_and_may_come_back() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        (name,) = world.pod_names()
        relabel(world, "pods", name, deployment=None)
        await until(lambda: world.status()["readyReplicas"] == 0, 5.0)
        assert not world.is_ready()
        await world.ready()
        await world.settled()
        assert len(world.pods()) == 2
        relabel(world, "pods", name, deployment=NAME)
        await until(lambda: len(world.pods()) == 1 and world.is_ready(), 60.0)
        await world.settled()
        relabel(world, "pods", world.pod_names()[0], deployment=None)
        await pass_time(10.0)
        world.delete()
        await until(lambda: not world.picture())

    play(scenario)


def test_a_pod_taken_out_of_the_service_finishes_its_requests() -> None:
    in_flight: dict[str, int] = {}

    async def scenario(world: World) -> None:
        world.kubelet.in_flight = lambda name: in_flight.get(name, 0)
        world.apply(replicas=2)
        await world.ready()
        await pass_time(600.0)
        name = world.pod_names()[0]
        in_flight[name] = 3
        relabel(world, "pods", name, serving=None)
        await pass_time(30.0)
        assert name in world.pod_names()
        in_flight.clear()
        await until(lambda: name not in world.pod_names(), 10.0)

    play(scenario)


def test_a_fight_over_a_child_is_slowed_down() -> None:
    """Somebody changes the Service back at once, whenever we write it, as an admission webhook does."""
    metadata = {"name": NAME, "namespace": "default", "labels": {labels.DEPLOYMENT: NAME}}
    theirs = {"metadata": metadata, "spec": {"selector": {labels.SERVING: "never"}}}

    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        await world.settled()
        is_fighting = True

        def change_back(change: Change) -> None:
            selector = (change.obj.get("spec") or {}).get("selector") or {}
            if is_fighting and change.plural == "services" and selector.get(labels.SERVING) == "true":
                asyncio.get_running_loop().call_soon(put, world.api, "services", theirs, "webhook")

        world.api.storage.on_change(change_back)
        start = len(world.api.writes)
        put(world.api, "services", theirs, "webhook")
        await pass_time(60.0)
        assert 5 <= writes_of(world, start).count(f"PATCH services/{NAME}") <= 15
        is_fighting = False
        await pass_time(60.0)
        start = len(world.api.writes)
        put(world.api, "services", theirs, "webhook")
        await pass_time(0.5)
        assert writes_of(world, start) == [f"PATCH services/{NAME}"], "what was long ago is forgotten"

    play(scenario)


@pytest.mark.parametrize("plural", ["services", "poddisruptionbudgets", "pods"])
def test_another_object_of_the_same_name_is_met_with_a_second_look(plural: str) -> None:
    """The cache lags: what the operator patches is no longer what it saw."""

    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        await world.settled()
        world.api.watch_lag_s = 3.0
        name = world.pod_names()[0] if plural == "pods" else NAME
        twin = get(world.api, plural, name)
        assert twin is not None
        world.api.storage.remove(plural, ("default", name))
        put(world.api, plural, twin)
        world.apply(replicas=1, service={"annotations": {"team": "a"}})
        await until(lambda: world.is_ready() and len(world.pods()) == 1, 60.0)
        await world.settled()
        assert world.condition("Stalled")["status"] == "False"

    world = play(scenario)
    assert "Refused" not in {reason for _, reason in events_of(world)}


def test_a_spec_that_turns_invalid_leaves_nobody_alone() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        world.apply(model={"source": "ftp://nowhere"})
        await until(lambda: world.condition("Stalled").get("reason") == "InvalidSpec")
        world.kubelet.fail(world.pod_names()[0])
        await until(lambda: world.status()["readyReplicas"] == 1, 5.0)
        await until(lambda: world.status()["readyReplicas"] == 2, 60.0)
        world.kubelet.add_node("node-1")
        world.kubelet.add_node("node-0", unschedulable=True)
        await until(lambda: {pod["spec"].get("nodeName") for pod in world.pods()} == {"node-1"}, 120.0)
        await world.settled()
        assert world.condition("Stalled")["reason"] == "InvalidSpec"
        assert (len(world.pods()), world.status()["readyReplicas"]) == (2, 2)
        world.apply(model={"source": "oci://registry.example/smol:1"})
        await world.ready()

    play(scenario)
