"""The bar: whatever the cluster goes through, no request that a client sends through the Service fails.

Some clients send short requests and some long streams, one after the other, on new connections or, as every
client of OpenAI's does, on those of a pool, none ever retried, while the ModelDeployment is rolled thrice,
scaled to three and back, and each node is drained of all that is Stoker's, the operator with it. They wait
for their answers (closed loop), so a slow machine makes the run longer but is never overloaded: the queue
limit's 429 would be a right answer, but not the one in question. What counts was started between the first
change and the end of the last drain.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scenarios import manifests, models
from scenarios.clientpod import ClientPod, RunningLoad
from scenarios.kube import Kube, Object
from scenarios.models import Model
from scenarios.platform import Platform, names
from scenarios.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900, func_only=True)]

LONG_S = 5.0
NUM_SHORT_CLIENTS = 4  # that use a new connection each time, and as many that keep theirs
SHORT = ("--concurrency", f"{NUM_SHORT_CLIENTS}", "--prompt-tokens", "4", "--output-tokens", "2")
NUM_STREAM_CLIENTS = 8
KEPT = "--keep-alive"
NUM_ROLLS = 3
MAX_MORE_ROLLS = 15  # where the machine needs more time for the amounts above
MAX_MODEL_LEN = 8192
STOKER = "app.kubernetes.io/name in (stoker-operator,stoker-runtime)"


@dataclass(frozen=True)
class Amounts:
    """What must have been asked at least, between the first change and the end of the last drain.

    Attributes:
        requests: short ones and streams together.
        long_streams: those that took over LONG_S.
    """

    requests: int
    long_streams: int


# What all changes once take anyway, and the bar.
AMOUNTS = (
    pytest.param(Amounts(500, 12), id="once"),
    pytest.param(Amounts(2000, 50), id="bar", marks=pytest.mark.long),
)


@pytest.fixture
def model(kube: Kube, namespace: str) -> Iterator[Model]:
    engine = {"maxModelLen": MAX_MODEL_LEN, "maxNumSeqs": 64}
    model = models.apply(kube, manifests.modeldeployment("steady", namespace, engine=engine))
    model.wait_settled()
    yield model
    kube.delete("ModelDeployment", model.name, namespace)
    model.wait_gone()


def long_stream_tokens(clients: ClientPod, url: str, name: str) -> int:
    """Output tokens of a stream that takes LONG_S, also when more replicas share the load than now.

    To be called while the short requests run, so that what is measured is what the streams will meet.
    """
    concurrency, requests = f"{NUM_STREAM_CLIENTS}", f"{2 * NUM_STREAM_CLIENTS}"
    report = clients.load(
        url, name, "--concurrency", concurrency, "--requests", requests, "--output-tokens", "64"
    )
    tpot_s: float = report["summary"]["tpot_s"]["p50"]
    return min(MAX_MODEL_LEN - 128, math.ceil(2 * LONG_S / tpot_s))


def roll(model: Model, max_num_seqs: int) -> None:
    """Change the engine's settings and wait until only pods of that revision are left."""
    old = names(model.pods())
    model.edit(engine={"maxNumSeqs": max_num_seqs})
    model.wait_settled(240)
    assert not old & names(model.pods())


def scale(kube: Kube, model: Model, num_replicas: int) -> None:
    kube.kubectl("scale", "--namespace", model.namespace, f"mdep/{model.name}", f"--replicas={num_replicas}")
    model.wait_settled(240)


def drain(platform: Platform, model: Model, node: str) -> None:
    """Drain a node of everything that is Stoker's the way an administrator does, then let pods back on it."""
    kube = platform.kube

    def left() -> list[Object]:
        return [pod for pod in kube.get_all("Pod", selector=STOKER) if pod["spec"].get("nodeName") == node]

    flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=200s")
    try:
        kube.kubectl("drain", node, f"--pod-selector={STOKER}", *flags, timeout_s=240)
        eventually(f"nothing of Stoker's is left on {node}", lambda: not left(), 60, left)
    finally:
        kube.kubectl("uncordon", node)
    platform.wait_for_operator()
    model.wait_settled()


def drain_each_node(platform: Platform, model: Model) -> None:
    """Drain one node after the other: the last one has both the operator and the replica by then."""
    *first, last = platform.cluster.node_names()
    for node in first:
        drain(platform, model, node)
    together = [*platform.operator_pods(), *model.pods()]
    assert [pod["spec"]["nodeName"] for pod in together] == [last, last]
    drain(platform, model, last)


def is_enough(amounts: Amounts, loads: list[RunningLoad], num_before: int) -> bool:
    """Whether the amounts have been reached; a failure is enough, too.

    Args:
        amounts: which.
        loads: short requests, then streams as the last one.
        num_before: requests that had been started when what counts began.
    """
    so_far = [load.look() for load in loads]
    num_ended = sum(len(found["e2e_s"]) for found in so_far) - num_before
    num_long = sum(duration > LONG_S for duration in so_far[-1]["e2e_s"])
    has_failed = any(found["failed"] for found in so_far)
    return has_failed or (num_ended >= amounts.requests and num_long >= amounts.long_streams)


def disturb(
    amounts: Amounts, platform: Platform, model: Model, loads: list[RunningLoad], num_before: int
) -> None:
    """Everything that must not fail a request; a few more rolls where the clients are slow."""
    settings = itertools.count(63, -1)
    for max_num_seqs in itertools.islice(settings, NUM_ROLLS):
        roll(model, max_num_seqs)
    scale(platform.kube, model, 3)
    scale(platform.kube, model, 1)
    for max_num_seqs in itertools.islice(settings, MAX_MORE_ROLLS):
        if is_enough(amounts, loads, num_before):
            break
        roll(model, max_num_seqs)
    drain_each_node(platform, model)


@pytest.mark.parametrize("amounts", AMOUNTS)
def test_no_request_fails_in_rollouts_scaling_and_drains(
    amounts: Amounts, model: Model, platform: Platform, clients: ClientPod, figures: list[str]
) -> None:
    url = model.status()["url"]
    loads = [clients.start_load(url, model.name, *SHORT), clients.start_load(url, model.name, *SHORT, KEPT)]
    try:
        tokens = f"{long_stream_tokens(clients, url, model.name)}"
        stream = ("--concurrency", f"{NUM_STREAM_CLIENTS}", "--output-tokens", tokens)
        loads.append(clients.start_load(url, model.name, *stream))
        begun = [load.look() for load in loads]
        begun_s = [found["now_s"] for found in begun]
        num_clients = 2 * NUM_SHORT_CLIENTS + NUM_STREAM_CLIENTS
        num_before = sum(len(found["e2e_s"]) for found in begun) + num_clients
        disturb(amounts, platform, model, loads, num_before)
        ended_s = [load.look()["now_s"] for load in loads]
    finally:
        reports = [load.stop() for load in loads]
    keep(reports)
    assert [outcome for report in reports for outcome in report["records"] if outcome["failure"]] == []
    short, kept, streams = (
        [outcome for outcome in report["records"] if begin <= outcome["started_s"] < end]
        for report, begin, end in zip(reports, begun_s, ended_s, strict=True)
    )
    num_long = sum(outcome["e2e_s"] > LONG_S for outcome in streams)
    num_requests = len(short) + len(kept) + len(streams)
    figures.append(
        f"0 of {num_requests} requests failed, {len(kept)} of them on kept connections; "
        f"{num_long} streams ({tokens} tokens) took over 5 s"
    )
    assert num_requests >= amounts.requests
    assert num_long >= amounts.long_streams


def keep(reports: list[Object]) -> None:
    """Print the summaries, and write them to the folder that STOKER_E2E_RESULTS names."""
    summaries: list[Any] = [{"load": report["load"], "summary": report["summary"]} for report in reports]
    print(json.dumps(summaries))
    folder = os.environ.get("STOKER_E2E_RESULTS")
    if folder:
        Path(folder, "no_request_fails.json").write_text(json.dumps(summaries, indent=2) + "\n")
