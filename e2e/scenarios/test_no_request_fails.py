"""The bar: whatever the cluster goes through, no request that a client sends through the Service fails.

A few clients send short requests and a few more long streams, one after the other, each on a new connection,
none ever retried, while the ModelDeployment is rolled thrice, scaled to three and back, and its node drained.
They wait for their answers (closed loop), so a slow machine makes the run longer but is never overloaded:
the queue limit's 429 would be a right answer, but not the one in question.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scenarios import manifests, models
from scenarios.clientpod import ClientPod
from scenarios.kube import Kube, Object
from scenarios.models import Model
from scenarios.platform import names
from scenarios.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900, func_only=True)]

MIN_REQUESTS = 2000
MIN_LONG_STREAMS = 50
LONG_S = 5.0
NUM_SHORT_CLIENTS = 8
NUM_STREAM_CLIENTS = 4
LOAD_TIMEOUT_S = 400
MAX_MODEL_LEN = 2048


@pytest.fixture
def model(kube: Kube, namespace: str) -> Iterator[Model]:
    engine = {"maxModelLen": MAX_MODEL_LEN, "maxNumSeqs": 64}
    model = models.apply(kube, manifests.modeldeployment("steady", namespace, engine=engine))
    model.wait_settled()
    yield model
    kube.delete("ModelDeployment", model.name, namespace)
    model.wait_gone()


def long_stream_tokens(clients: ClientPod, url: str, name: str) -> int:
    """Output tokens of a stream that takes LONG_S even while nothing else runs."""
    report = clients.load(url, name, "--requests", "2", "--output-tokens", "64")
    tpot_s: float = report["summary"]["tpot_s"]["min"]
    return min(MAX_MODEL_LEN - 128, math.ceil(1.05 * LONG_S / tpot_s))


def roll(model: Model, max_num_seqs: int) -> None:
    """Change the engine's settings and wait until only pods of that revision are left."""
    old = names(model.pods())
    model.edit(engine={"maxNumSeqs": max_num_seqs})
    model.wait_settled(240)
    assert not old & names(model.pods())


def scale(kube: Kube, model: Model, num_replicas: int) -> None:
    kube.kubectl("scale", "--namespace", model.namespace, f"mdep/{model.name}", f"--replicas={num_replicas}")
    model.wait_settled(240)


def drain(kube: Kube, model: Model) -> None:
    """Drain the node of the only pod the way an administrator does, and let pods back on it."""
    (pod,) = model.pods()
    node = pod["spec"]["nodeName"]
    selector = f"--pod-selector=stoker.dev/deployment={model.name}"
    try:
        kube.kubectl(
            "drain",
            node,
            selector,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--timeout=200s",
            timeout_s=240,
        )
        eventually("the pod left the node", lambda: pod["metadata"]["name"] not in names(model.pods()), 60)
        assert {moved["spec"]["nodeName"] for moved in model.pods()}.isdisjoint({node})
    finally:
        kube.kubectl("uncordon", node)
    model.wait_settled()


def test_no_request_fails_in_rollouts_scaling_and_a_drain(
    model: Model, kube: Kube, clients: ClientPod
) -> None:
    url = model.status()["url"]
    tokens = long_stream_tokens(clients, url, model.name)
    short = ("--concurrency", f"{NUM_SHORT_CLIENTS}", "--prompt-tokens", "4", "--output-tokens", "2")
    stream = ("--concurrency", f"{NUM_STREAM_CLIENTS}", "--output-tokens", f"{tokens}")
    loads = [
        clients.start_load(url, model.name, *options, "--at-least", f"{number}")
        for options, number in ((short, MIN_REQUESTS), (stream, MIN_LONG_STREAMS + 10))
    ]
    try:
        for max_num_seqs in (48, 40, 32):
            roll(model, max_num_seqs)
        scale(kube, model, 3)
        scale(kube, model, 1)
        drain(kube, model)
    finally:
        reports = [load.stop(LOAD_TIMEOUT_S) for load in loads]
    outcomes = [outcome for report in reports for outcome in report["records"]]
    keep(reports)
    failed = [outcome for outcome in outcomes if outcome["failure"] is not None]
    assert failed == []
    assert len(outcomes) >= MIN_REQUESTS
    assert (
        sum(outcome["e2e_s"] > LONG_S for outcome in outcomes if len(outcome["itl_s"]) > 1)
        >= MIN_LONG_STREAMS
    )


def keep(reports: list[Object]) -> None:
    """Print the figures, and write them to the folder that STOKER_E2E_RESULTS names."""
    figures: list[Any] = [{"load": report["load"], "summary": report["summary"]} for report in reports]
    print(json.dumps(figures))
    folder = os.environ.get("STOKER_E2E_RESULTS")
    if folder:
        Path(folder, "no_request_fails.json").write_text(json.dumps(figures, indent=2) + "\n")
