"""The bar: the operator may die at any moment, and the objects end up as if it had not."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest

import product
from scenarios import manifests, models
from scenarios.killer import Killer
from scenarios.kube import Kube
from scenarios.models import Model
from scenarios.platform import Platform, temporary_namespace
from scenarios.snapshot import snapshot

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900, func_only=True)]

SEED = 20
# Of four steps each: create, update, scale, delete. Component tests kill operators as well, at every write.
NUM_ROUNDS = 3
KILLS_PER_STEP = 2  # the operator at work on the step, and the one that took over from it
MAX_DELAY_S = 4.0
NAME = "survivor"


@pytest.fixture
def killer(platform: Platform, kube: Kube) -> Iterator[Killer]:
    with temporary_namespace(kube, "killer", pod_security="privileged") as space:
        killer = Killer(kube, space, product.OPERATOR_IMAGE, platform.cluster.node_names())
        yield killer
        killer.close()


def steps(model: Model) -> dict[str, Callable[[], object]]:
    """The life of a ModelDeployment, each step by its name."""
    kube, namespace = model.kube, model.namespace
    return {
        "create": lambda: models.apply(kube, manifests.modeldeployment(NAME, namespace)),
        "update": lambda: model.edit(engine={"maxModelLen": 1024}),
        "scale": lambda: model.edit(replicas=2),
        "delete": lambda: kube.delete("ModelDeployment", NAME, namespace),
    }


def settle(model: Model, step: str) -> None:
    if step == "delete":
        model.wait_gone()
    else:
        model.wait_settled(180)


def live(platform: Platform, model: Model, after_step: Callable[[], None]) -> dict[str, list[str]]:
    """Go through all steps; return what the namespace holds once each has settled."""
    held = {}
    for name, step in steps(model).items():
        platform.wait_for_operator()
        step()
        after_step()
        settle(model, name)
        held[name] = snapshot(model.kube, model.namespace)
    return held


def kill_operator(platform: Platform, killer: Killer) -> None:
    """SIGKILL, then make room for the next operator: a kubelet holds back what crashes often, for minutes."""
    (pod,) = platform.operator_pods()
    assert killer.kill(pod) > 0
    platform.kube.delete("Pod", pod["metadata"]["name"], product.NAMESPACE, gracePeriodSeconds=0)


def test_operator_killed_at_random_moments_leaves_the_same_objects(
    platform: Platform, kube: Kube, namespace: str, killer: Killer
) -> None:
    model = Model(kube, namespace, NAME)
    wanted = live(platform, model, lambda: None)
    num_objects = {name: len(held) for name, held in wanted.items()}
    assert num_objects == {"create": 4, "update": 4, "scale": 5, "delete": 0}
    rng = random.Random(SEED)
    never = threading.Event()
    num_kills = 0

    def kill_soon() -> None:
        nonlocal num_kills
        for _ in range(KILLS_PER_STEP):
            platform.wait_for_operator()
            platform.wait_for_leader()
            never.wait(rng.uniform(0.0, MAX_DELAY_S))
            kill_operator(platform, killer)
            num_kills += 1

    for round_ in range(NUM_ROUNDS):
        assert live(platform, model, kill_soon) == wanted, f"round {round_}"
    assert num_kills == 4 * KILLS_PER_STEP * NUM_ROUNDS
