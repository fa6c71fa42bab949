"""Whatever admission answers, in whatever words: it is told, tried again now and then, and never a loop."""

from collections.abc import Callable
from typing import Any

import pytest
from fakeapi.admission import Hook, annotate, audited, edit, prune, quota, refuse, relabel, unreachable
from fakeapi.client import everything, get, put
from fakeapi.faults import Call, Fault
from operator_world import NAME, World, play, writes_of
from virtual_time import pass_time, until
from write_bounds import fruitless


def tries_of(world: World, method: str, plural: str) -> int:
    return sum(o.call.method == method and f"/{plural}" in o.call.path for o in world.api.outcomes)


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [(audited, 403, "Refused"), (audited, 422, "Refused"), (unreachable, 500, "ApiError")],
    ids=["denial with an id", "policy with an id", "webhook that is down"],
)
def test_words_that_differ_each_time_make_no_loop(text: Callable[[int], str], code: int, reason: str) -> None:
    async def scenario(world: World) -> None:
        world.api.admission.append(refuse("pods", text, code))
        world.apply()
        await until(lambda: world.condition("Ready").get("reason") == reason, 10.0)
        await pass_time(600.0)
        assert 10 <= tries_of(world, "POST", "pods") <= 60
        world.api.admission.clear()
        await world.ready(deadline_s=45.0)

    play(scenario)


def test_no_event_shortens_the_wait_for_what_was_refused() -> None:
    """Pods that come up, quotas that are counted, labels that change: each wakes the ModelDeployment."""

    async def scenario(world: World) -> None:
        world.api.admission.append(refuse("services"))
        world.apply(replicas=2)
        await until(lambda: len(world.pods()) == 2)
        for number in range(600):
            pod = world.pods()[number % 2]
            world.kubelet.start(pod["metadata"]["name"])
            if number % 10 == 0:
                world.kubelet.make_ready(pod["metadata"]["name"])
            await pass_time(0.1)
        assert tries_of(world, "PATCH", "services") <= 8

    play(scenario, kubelet=False)


def test_a_refusal_that_is_corrected_by_an_edit_is_tried_at_once() -> None:
    def is_small(spec: Any) -> bool:
        return "--max-model-len=512" in spec["containers"][0]["args"]

    async def scenario(world: World) -> None:
        world.api.admission.append(refuse("pods", only=lambda review: not is_small(review.obj["spec"])))
        world.apply()
        await pass_time(300.0)
        world.apply(engine={"maxModelLen": 512})
        await until(world.pods, 0.5, step_s=0.01)
        await world.ready()

    play(scenario)


def test_a_webhook_that_is_down_for_pods_holds_up_neither_service_nor_drain() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=3)
        await world.ready()
        world.api.admission.append(refuse("pods", unreachable, 500, operations=("CREATE",)))
        world.kubelet.fail(world.pod_names()[0])
        await until(lambda: world.condition("Ready").get("reason") == "ApiError", 30.0)
        world.apply(replicas=1, service={"port": 8080})
        await until(lambda: len(world.pods()) == 1, 20.0)
        service = get(world.api, "services", NAME) or {}
        assert [port["port"] for port in service["spec"]["ports"]] == [8080]

    play(scenario)


def test_a_quota_is_met_by_one_refusal_and_not_by_one_for_each_pod() -> None:
    async def scenario(world: World) -> None:
        world.api.admission.append(quota("pods", 30, lambda: len(everything(world.api, "pods"))))
        world.apply(replicas=60)
        await until(lambda: len(world.pods()) == 30, 5.0)
        await pass_time(20.0)
        assert tries_of(world, "POST", "pods") - 30 <= 8
        await until(lambda: world.condition("Stalled").get("reason") == "Refused")
        assert "exceeded quota" in world.condition("Stalled")["message"]
        world.api.admission.clear()
        await until(lambda: len(world.pods()) == 60, 30.0)

    play(scenario)


def test_a_typo_with_a_thousand_replicas_is_one_write_at_a_time() -> None:
    async def scenario(world: World) -> None:
        world.api.admission.append(refuse("pods", code=422))
        world.apply(replicas=1000)
        await pass_time(60.0)
        assert 3 <= tries_of(world, "POST", "pods") <= 8

    play(scenario)


def test_pods_that_may_not_be_deleted_do_not_hold_up_the_others() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=20)
        await world.ready()
        kept = set(world.pod_names()[:10])
        world.api.admission.append(
            refuse("pods", operations=("DELETE",), only=lambda review: review.name in kept)
        )
        world.apply(replicas=1)
        await until(lambda: len(world.pods()) <= 11, 600.0, step_s=1.0)
        assert kept <= set(world.pod_names()) | {world.pod_names()[0]}
        world.api.admission.clear()
        await until(lambda: len(world.pods()) == 1, 120.0, step_s=1.0)

    play(scenario)


@pytest.mark.parametrize("key", ["deployment", "role", "serving", "revision"])
@pytest.mark.parametrize("value", [None, "theirs"], ids=["dropped", "changed"])
def test_pods_without_our_labels_are_taken_back_and_told(key: str, value: str | None) -> None:
    """The operator could not see them: it would make one after another."""

    async def scenario(world: World) -> None:
        world.api.admission.append(relabel("pods", **{key: value}))
        world.apply()
        await until(lambda: world.condition("Stalled").get("reason") == "ChangedByAdmission", 10.0)
        assert f"stoker.dev/{key}" in world.condition("Stalled")["message"]
        await pass_time(120.0)
        assert world.pods() == []
        assert tries_of(world, "POST", "pods") <= 15
        world.api.admission.clear()
        await world.ready(deadline_s=60.0)

    play(scenario)


def test_pods_without_their_owner_are_taken_back_and_told() -> None:
    async def scenario(world: World) -> None:
        world.api.admission.append(prune("pods", "metadata", "ownerReferences"))
        world.apply()
        await until(lambda: "ownerReferences" in world.condition("Stalled").get("message", ""), 10.0)
        await pass_time(60.0)
        assert world.pods() == []

    play(scenario)


@pytest.mark.parametrize(
    "hook",
    [
        relabel("services", deployment=None),
        relabel("poddisruptionbudgets", deployment=None),
        annotate("services", **{"applied-hash": None}),
        annotate("pods", **{"draining-since": None}),
        relabel("pods", serving="true"),
        prune("services", "spec", "ports"),
        prune("poddisruptionbudgets", "spec", "minAvailable"),
        edit("services", lambda obj: obj["spec"].update(selector={"app": "theirs"})),
    ],
    ids=[
        "service loses its label",
        "budget loses its label",
        "service loses its hash",
        "pods lose the time of their drain",
        "pods cannot leave the service",
        "service loses its ports",
        "budget loses its number",
        "service selects others",
    ],
)
def test_what_admission_changes_back_is_written_now_and_then(hook: Hook) -> None:
    async def scenario(world: World) -> None:
        world.api.admission.append(hook)
        world.apply(replicas=2)
        await pass_time(60.0)
        world.apply(replicas=1)
        await pass_time(240.0)
        world.api.admission.clear()
        await world.ready(deadline_s=60.0)
        await until(lambda: len(world.pods()) == 1, 300.0)
        await world.settled()

    play(scenario)


def stamp() -> Hook:
    """Others write into the status at each update."""
    numbers = iter(range(10**9))

    def change(obj: dict[str, Any]) -> None:
        for condition in (obj.get("status") or {}).get("conditions", []):
            condition["message"] = f"{condition.get('message')} [{next(numbers)}]"

    return edit("modeldeployments", change, "status")


@pytest.mark.parametrize(
    "hook",
    [
        stamp(),
        refuse("modeldeployments", subresource="status"),
        refuse("modeldeployments", unreachable, 500, subresource="status"),
    ],
    ids=["stamped", "refused", "webhook down"],
)
def test_a_status_that_others_change_or_refuse_makes_no_loop(hook: Hook) -> None:
    async def scenario(world: World) -> None:
        world.api.admission.append(hook)
        world.apply(replicas=2)
        await until(lambda: len(world.pods()) == 2)
        await pass_time(300.0)
        assert tries_of(world, "PATCH", f"modeldeployments/{NAME}/status") <= 40
        world.api.admission.clear()
        await world.ready(deadline_s=60.0)
        await world.settled()

    play(scenario)


def test_the_condition_of_others_is_left_alone_and_makes_no_write() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        await world.settled()
        start = len(world.api.writes)
        theirs = {"type": "Theirs", "status": "True", "reason": "X", "message": "y"}
        model = get(world.api, "modeldeployments", NAME) or {}
        conditions = [*model["status"]["conditions"], theirs]
        metadata = {"name": NAME, "namespace": "default"}
        put(world.api, "modeldeployments", {"metadata": metadata, "status": {"conditions": conditions}})
        await pass_time(900.0)
        assert writes_of(world, start) == []
        assert world.condition("Theirs") == theirs

    play(scenario)


def test_what_others_write_into_our_status_is_mended_and_a_fight_is_slow() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        await world.settled()
        metadata = {"name": NAME, "namespace": "default"}
        for _ in range(300):
            put(world.api, "modeldeployments", {"metadata": metadata, "status": {"readyReplicas": 7}})
            await pass_time(0.2)
        await until(lambda: world.status()["readyReplicas"] == 1, 60.0)

    play(scenario)


def test_an_edit_while_the_status_is_on_its_way_fails_no_pass_and_loses_no_event() -> None:
    async def scenario(world: World) -> None:
        metadata = {"name": NAME, "namespace": "default"}
        edits = iter(range(1, 10_000))

        def change_meanwhile(call: Call) -> Fault | None:
            number = next(edits)
            if call.path.endswith("/status") and number % 3 == 1:
                noise = {"metadata": {**metadata, "annotations": {"scaled": str(number)}}}
                put(world.api, "modeldeployments", noise)
            return None

        world.apply(replicas=2)
        world.api.injector = change_meanwhile
        await world.ready()
        world.apply(replicas=3)
        await world.ready()
        await world.settled()
        assert world.errors() == 0
        created = [e for e in everything(world.api, "events") if e["reason"] == "PodCreated"]
        assert len(created) == 3

    play(scenario)


def test_a_status_that_cannot_be_written_loses_no_event_of_a_pod() -> None:
    async def scenario(world: World) -> None:
        world.api.admission.append(refuse("modeldeployments", unreachable, 500, subresource="status"))
        world.apply(replicas=3)
        await until(lambda: len(world.pods()) == 3)
        await pass_time(5.0)
        created = [e for e in everything(world.api, "events") if e["reason"] == "PodCreated"]
        assert len(created) == 3
        assert world.errors() > 0

    play(scenario)


def test_the_helper_counts_what_it_should() -> None:
    async def scenario(world: World) -> None:
        world.api.admission.append(refuse("services"))
        world.apply()
        await pass_time(60.0)

    world = play(scenario)
    assert 3 <= len(fruitless(world.api)[NAME]) <= 12
