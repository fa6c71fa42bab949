"""Situations of a ModelDeployment, played on the fake API, with what Argo CD and Flux have to see in each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fakeapi.admission import refuse, unreachable
from fakeapi.client import get, put
from fakeapi.nodes import Object
from operator_world import NAME, World, play
from replica_writers import kubectl_apply, scale
from virtual_time import pass_time, until

OTHER: dict[str, Any] = {"engine": {"maxModelLen": 512}}
GONE = '{"reason": "ModelNotFound", "message": "the hub has no such repository"}'


async def never_seen(world: World) -> None:
    world.stop()
    world.apply()


async def loading(world: World) -> None:
    world.kubelet.is_loading = lambda pod: True
    world.apply()
    await world.settled()


async def ready(world: World) -> None:
    world.apply(replicas=2)
    await world.ready()
    await world.settled()


async def edited_while_the_operator_is_away(world: World) -> None:
    await ready(world)
    world.stop()
    world.apply(**OTHER)


async def rolling_update(world: World) -> None:
    await ready(world)
    world.kubelet.is_loading = has_other_length
    world.apply(**OTHER)
    await world.settled()


async def scaling_up(world: World) -> None:
    await ready(world)
    world.kubelet.is_loading = lambda pod: True
    world.apply(replicas=3)
    await world.settled()


async def scaling_down(world: World) -> None:
    world.kubelet.in_flight = lambda name: 1
    await ready(world)
    world.apply(replicas=1)
    await reason(world, "RemovingPods", "Reconciling")


async def scaled_to_zero(world: World) -> None:
    await ready(world)
    world.apply(replicas=0)
    await until(lambda: not world.pods())
    await world.settled()


async def suspending(world: World) -> None:
    world.kubelet.in_flight = lambda name: 1
    await ready(world)
    world.apply(suspend=True)
    await reason(world, "RemovingPods", "Reconciling")


async def suspended(world: World) -> None:
    await ready(world)
    world.apply(suspend=True)
    await until(lambda: not world.pods())
    await world.settled()


async def paused(world: World) -> None:
    await ready(world)
    world.apply(rollout={"paused": True}, **OTHER)
    await reason(world, "Paused")
    await world.settled()


async def unschedulable(world: World) -> None:
    world.kubelet.add_node("node-0", allocatable={"nvidia.com/gpu": "0"})
    world.apply(accelerator={"perPod": 1})
    await reason(world, "Unschedulable")


async def crashing(world: World) -> None:
    world.kubelet.is_broken = lambda pod: True
    world.apply()
    await reason(world, "ContainerCrashed", "Stalled")


async def broken_update(world: World) -> None:
    await ready(world)
    world.kubelet.is_broken = has_other_length
    world.kubelet.last_words = GONE
    world.apply(**OTHER)
    await reason(world, "ModelNotFound", "Stalled")


async def late(world: World) -> None:
    world.kubelet.is_loading = lambda pod: True
    world.apply(rollout={"progressDeadlineSeconds": 60})
    await until(lambda: world.condition("Stalled").get("status") == "True", 120.0)


async def invalid_spec(world: World) -> None:
    world.apply(model={"source": "ftp://nowhere"})
    await reason(world, "InvalidSpec", "Stalled")


async def name_conflict(world: World) -> None:
    theirs = {"metadata": {"name": NAME, "namespace": "default"}, "spec": {"ports": [{"port": 1}]}}
    put(world.api, "services", theirs)
    world.apply()
    await reason(world, "NameConflict", "Stalled")


async def refused(world: World) -> None:
    world.api.admission.append(refuse("pods", lambda number: "exceeded quota: gpus"))
    world.apply()
    await reason(world, "Refused", "Stalled")


async def webhook_down(world: World) -> None:
    world.api.admission.append(refuse("pods", unreachable, 500, operations=("CREATE",)))
    world.apply()
    await reason(world, "ApiError")


async def lost_node(world: World) -> None:
    world.apply()
    await world.ready()
    world.kubelet.add_node("node-0", ready=False)
    await reason(world, "NodeNotReady")


async def drain_unobserved(world: World) -> None:
    world.kubelet.unreachable = lambda name: "Connection refused"
    await ready(world)
    world.apply(replicas=1)
    await until(lambda: world.condition("DrainUnobserved"), 20.0)


async def contested_replicas(world: World) -> None:
    world.apply()
    kubectl_apply(world, replicas=1)
    await world.ready()
    await scale(world, 2)
    await world.ready()
    await world.settled()


def has_other_length(pod: Object) -> bool:
    return "--max-model-len=512" in pod["spec"]["containers"][0]["args"]


async def reason(world: World, wanted: str, kind: str = "Ready") -> None:
    """Wait until a condition has this reason; what comes at once with it is there half a second later."""
    await until(lambda: world.condition(kind).get("reason") == wanted, 60.0)
    await pass_time(0.5)


@dataclass(frozen=True)
class Situation:
    """One situation.

    Args:
        play: brings it about.
        argo_cd: health that Argo CD has to show.
        kstatus: status that Flux and others have to read.
    """

    play: Callable[[World], Coroutine[Any, Any, None]]
    argo_cd: str
    kstatus: str

    @property
    def name(self) -> str:
        """What it and its recording are called."""
        return self.play.__name__.replace("_", "-")


SITUATIONS = (
    Situation(never_seen, "Progressing", "InProgress"),
    Situation(loading, "Progressing", "InProgress"),
    Situation(ready, "Healthy", "Current"),
    Situation(edited_while_the_operator_is_away, "Progressing", "InProgress"),
    Situation(rolling_update, "Progressing", "InProgress"),
    Situation(scaling_up, "Healthy", "InProgress"),
    # All that is wanted answers: who waits for an answer need not wait until the last pod is gone.
    Situation(scaling_down, "Healthy", "InProgress"),
    Situation(scaled_to_zero, "Healthy", "Current"),
    Situation(suspending, "Suspended", "InProgress"),
    Situation(suspended, "Suspended", "Current"),
    Situation(paused, "Suspended", "InProgress"),
    Situation(unschedulable, "Progressing", "InProgress"),
    Situation(crashing, "Degraded", "Failed"),
    Situation(broken_update, "Degraded", "Failed"),
    Situation(late, "Degraded", "Failed"),
    Situation(invalid_spec, "Degraded", "Failed"),
    Situation(name_conflict, "Degraded", "Failed"),
    Situation(refused, "Degraded", "Failed"),
    Situation(webhook_down, "Progressing", "InProgress"),
    Situation(lost_node, "Progressing", "InProgress"),
    Situation(drain_unobserved, "Healthy", "InProgress"),
    Situation(contested_replicas, "Healthy", "Current"),
)


def record(situation: Situation) -> Object:
    """Play a situation and return the ModelDeployment that it ends in, as `kubectl get` shows it."""
    stored = get(play(situation.play).api, "modeldeployments", NAME)
    assert stored is not None
    result = copy.deepcopy(stored)
    del result["metadata"]["resourceVersion"]  # it counts the writes on the way there
    del result["metadata"]["managedFields"]
    return result
