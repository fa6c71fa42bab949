import pytest
from fakeapi import faults
from fakeapi.client import delete, get, put
from fakeapi.faults import Call, Fault
from fakeapi.kubelet import is_serving
from operator_world import NAME, World, play, writes_of
from virtual_time import pass_time, until

from stoker_operator.api import labels

OTHER = {"engine": {"maxModelLen": 512}}
NEWEST = {"engine": {"maxModelLen": 1024}}


def revisions(world: World) -> set[str]:
    return {pod["metadata"]["labels"][labels.REVISION] for pod in world.pods()}


def test_create_makes_the_shared_children_first_and_becomes_ready() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()

    world = play(scenario)
    assert writes_of(world)[:5] == [
        "POST default/controllerrevisions",
        "PATCH services/smol",
        "PATCH poddisruptionbudgets/smol",
        "POST default/pods",
        "POST default/pods",
    ]
    status = world.status()
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (2, 2, 2)
    for child in (
        *world.pods(),
        get(world.api, "services", NAME),
        get(world.api, "poddisruptionbudgets", NAME),
    ):
        assert child is not None
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("ModelDeployment", NAME, True)


def test_idle_minutes_a_second_apply_and_a_restart_write_nothing() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        await world.settled()
        num_writes = len(world.api.writes)
        await pass_time(3600.0)
        world.apply(replicas=2)
        await pass_time(10.0)
        world.kill()
        await until(lambda: world.num_starts == 2)
        await pass_time(3600.0)
        assert writes_of(world, num_writes) == []

    play(scenario)


def test_ready_is_reported_within_moments_of_the_pod() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await until(lambda: any(map(is_serving, world.pods())), step_s=0.01)
        await until(world.is_ready, deadline_s=0.5, step_s=0.01)

    play(scenario)


def test_rolling_update_keeps_every_replica_serving() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=3)
        await world.ready()
        world.num_serving.clear()
        world.num_pods.clear()
        world.apply(**OTHER)
        await world.ready()
        await world.settled()

    world = play(scenario)
    assert min(world.num_serving) == 3
    assert max(world.num_pods) == 4
    assert len(revisions(world)) == 1
    assert len(world.pods()) == 3


def test_a_broken_revision_leaves_the_old_one_alone_and_a_fix_gets_through() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        old = revisions(world)
        world.num_serving.clear()
        world.kubelet.is_broken = lambda pod: "--max-model-len=512" in pod["spec"]["containers"][0]["args"]
        world.apply(**OTHER)
        await until(lambda: world.condition("Stalled").get("reason") == "ContainerCrashed", 60.0)
        await world.settled()
        assert old < revisions(world)
        world.apply(**NEWEST)
        await world.ready()
        await world.settled()

    world = play(scenario)
    assert min(world.num_serving) == 2
    assert len(revisions(world)) == 1


def test_a_pod_is_deleted_only_when_nothing_is_in_flight() -> None:
    in_flight: dict[str, int] = {}

    async def scenario(world: World) -> None:
        world.kubelet.in_flight = lambda name: in_flight.get(name, 0)
        world.apply(replicas=2)
        await world.ready()
        in_flight.update(dict.fromkeys(world.pod_names(), 5))
        world.apply(replicas=1)
        await until(lambda: sum(map(is_serving, world.pods())) == 1)
        await pass_time(10.0)
        assert len(world.pods()) == 2, "it still answers five requests"
        in_flight.clear()
        await until(lambda: len(world.pods()) == 1, 10.0)

    play(scenario)


def test_a_pod_that_never_gets_empty_goes_at_the_deadline() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.in_flight = lambda name: 1
        world.apply(replicas=2, pod={"terminationGracePeriodSeconds": 60})
        await world.ready()
        world.apply(replicas=1)
        await until(lambda: len(world.pods()) == 1, 70.0)

    play(scenario)


def test_suspend_takes_all_pods_away_and_resume_brings_them_back() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        world.apply(suspend=True)
        await until(lambda: not world.pods())
        assert world.condition("Ready")["reason"] == "Suspended"
        assert get(world.api, "services", NAME) is not None
        await world.settled()
        world.apply(suspend=False)
        await world.ready()

    assert len(play(scenario).pods()) == 2


@pytest.mark.parametrize("is_down", [False, True], ids=["operator up", "operator down"])
def test_delete_leaves_nothing_behind_and_brings_nothing_back(is_down: bool) -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        if is_down:
            world.stop()
        world.delete()
        await until(lambda: not world.picture())
        if is_down:
            world.restart()
        num_writes = len(world.api.writes)
        await pass_time(600.0)
        assert writes_of(world, num_writes) == []
        assert not world.picture()

    play(scenario)


def test_delete_during_an_expired_watch_brings_nothing_back() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        await world.settled()
        world.api.injector = lambda call: Fault.SERVER_ERROR if call.method == "GET" else None
        world.api.break_watches()
        world.delete()
        await until(lambda: not world.picture())
        world.api.storage.compact()
        world.api.injector = faults.no_fault
        await pass_time(600.0)
        assert not world.picture()

    play(scenario)


def test_recreate_under_the_same_name_starts_afresh() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=2)
        await world.ready()
        before = {pod["metadata"]["uid"] for pod in world.pods()}
        world.delete()
        world.apply(replicas=1)
        await until(lambda: world.is_ready() and len(world.pods()) == 1, 120.0)
        assert not before & {pod["metadata"]["uid"] for pod in world.pods()}

    play(scenario)


def test_an_invalid_spec_stalls_without_retries() -> None:
    async def scenario(world: World) -> None:
        world.apply(model={"source": "ftp://nowhere"})
        await until(lambda: world.condition("Stalled").get("status") == "True")
        num_writes = len(world.api.writes)
        await pass_time(3600.0)
        assert writes_of(world, num_writes) == []
        assert world.condition("Stalled")["reason"] == "InvalidSpec"
        assert "spec.model.source" in world.condition("Stalled")["message"]
        world.apply(model={"source": "oci://registry.example/smol:1"})
        await world.ready()

    play(scenario)


@pytest.mark.parametrize("kind", ["services", "poddisruptionbudgets"])
def test_a_foreign_object_under_our_name_is_never_touched(kind: str) -> None:
    async def scenario(world: World) -> None:
        theirs = {"metadata": {"name": NAME, "namespace": "default"}, "spec": {"ports": [{"port": 1}]}}
        before = put(world.api, kind, theirs)
        world.apply(replicas=2)
        await until(lambda: world.condition("Stalled").get("reason") == "NameConflict")
        await pass_time(60.0)
        assert get(world.api, kind, NAME) == before
        delete(world.api, kind, NAME)
        await world.ready(deadline_s=60.0)

    play(scenario)


def test_a_foreign_pod_under_our_name_is_stepped_around() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        (name,) = world.pod_names()
        world.apply(suspend=True)
        await until(lambda: not world.pods())
        put(
            world.api,
            "pods",
            {"metadata": {"name": name, "namespace": "default"}, "spec": {"containers": []}},
        )
        world.apply(suspend=False)
        await world.ready(deadline_s=120.0)
        assert len(world.pods()) == 2
        assert "ownerReferences" not in (get(world.api, "pods", name) or {})["metadata"]

    play(scenario)


def test_a_quota_becomes_a_condition_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(faults.REFUSALS, Fault.CONFLICT, (403, "Forbidden"))

    def quota(call: Call) -> Fault | None:
        return Fault.CONFLICT if call.method == "POST" and call.path.endswith("/pods") else None

    async def scenario(world: World) -> None:
        world.api.injector = quota
        world.apply(replicas=2)
        await until(lambda: world.condition("Ready").get("reason") == "Refused")
        assert "injected" in world.condition("Ready")["message"]
        start = len(world.api.writes)
        await pass_time(120.0)
        tries = [write for write in writes_of(world, start) if write.startswith("POST")]
        assert 2 <= len(tries) <= 2 * 12
        assert len(writes_of(world, start)) == len(tries), "the same refusal is written once"
        world.api.injector = faults.no_fault
        await world.ready(deadline_s=30.0)

    play(scenario)


def test_a_refused_pod_does_not_hold_up_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(faults.REFUSALS, Fault.CONFLICT, (403, "Forbidden"))

    def quota(call: Call) -> Fault | None:
        return Fault.CONFLICT if call.method == "POST" and call.path.endswith("/pods") else None

    async def scenario(world: World) -> None:
        world.apply(replicas=3)
        await world.ready()
        world.api.injector = quota
        world.apply(**OTHER)
        await pass_time(120.0)
        assert sum(map(is_serving, world.pods())) == 3
        world.apply(replicas=1)
        await until(lambda: len(world.pods()) == 1, 10.0)

    play(scenario)


def test_a_cordoned_node_is_left_without_a_gap() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        world.num_serving.clear()
        world.kubelet.add_node("node-1")
        world.kubelet.add_node("node-0", unschedulable=True)
        await until(lambda: [pod["spec"].get("nodeName") for pod in world.pods()] == ["node-1"], 60.0)
        await world.ready()

    assert min(play(scenario).num_serving) == 1


def test_an_evicted_pod_is_replaced() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        (name,) = world.pod_names()
        uid = world.pods()[0]["metadata"]["uid"]
        world.kubelet.fail(name)
        await until(lambda: any(map(is_serving, world.pods())), 120.0)
        await world.settled()
        assert uid not in [pod["metadata"]["uid"] for pod in world.pods()]

    play(scenario)


def test_drift_of_our_fields_is_corrected_and_of_others_left() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        await world.settled()
        start = len(world.api.writes)
        metadata = {"name": NAME, "namespace": "default"}
        put(world.api, "services", {"metadata": {**metadata, "annotations": {"theirs": "1"}}})
        await pass_time(60.0)
        assert writes_of(world, start) == []
        put(world.api, "services", {"metadata": metadata, "spec": {"selector": {labels.SERVING: "false"}}})
        await until(lambda: len(writes_of(world, start)) > 0)
        service = get(world.api, "services", NAME)
        assert service is not None
        assert service["spec"]["selector"][labels.SERVING] == "true"
        assert service["metadata"]["annotations"]["theirs"] == "1"
        await world.settled()
        assert writes_of(world, start) == [f"PATCH services/{NAME}"]

    play(scenario)


def test_a_lagging_cache_never_makes_duplicates() -> None:
    async def scenario(world: World) -> None:
        world.api.watch_lag_s = 3.0
        world.apply(replicas=3)
        await world.ready()
        world.apply(**OTHER)
        await world.ready()
        await world.settled()

    world = play(scenario)
    assert max(world.num_pods) <= 4
    assert len(world.pods()) == 3
    assert len(revisions(world)) == 1


def test_a_second_edit_during_a_rollout_converges_on_the_newest() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=3)
        await world.ready()
        world.num_serving.clear()
        world.apply(**OTHER)
        await until(lambda: len(revisions(world)) == 2)
        world.apply(**NEWEST)
        await world.ready()
        await world.settled()

    world = play(scenario)
    assert len(world.pods()) == 3
    assert min(world.num_serving) == 3
    assert all("--max-model-len=1024" in pod["spec"]["containers"][0]["args"] for pod in world.pods())


def test_unschedulable_is_reported_with_its_resource_within_five_seconds() -> None:
    async def scenario(world: World) -> None:
        world.apply(accelerator={"perPod": 1})
        await until(lambda: len(world.pods()) == 1)
        world.kubelet.refuse_to_schedule(world.pod_names()[0], "0/1 nodes: 1 Insufficient nvidia.com/gpu")
        await until(lambda: world.condition("Scheduled").get("reason") == "Unschedulable", 5.0)
        assert "nvidia.com/gpu" in world.condition("Ready")["message"]

    play(scenario, kubelet=False)


def test_many_models_side_by_side() -> None:
    names = [f"model-{number}" for number in range(10)]

    async def scenario(world: World) -> None:
        for name in names:
            world.apply(name, replicas=1)
        for name in names:
            await world.ready(name)
        await world.settled()

    world = play(scenario)
    assert len(world.pods()) == len(names)
