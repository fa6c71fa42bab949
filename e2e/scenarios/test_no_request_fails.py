"""The bar: whatever the cluster goes through, no request that a client sends through the Service fails.

Some clients send short requests and some long streams, one after the other, on new connections or, as every
client of OpenAI's does, on those of a pool, none ever retried, while the ModelDeployment is rolled, scaled to
three, rolled there and scaled back, and each node is drained of all that is Stoker's, the operator with it.
They wait for their answers (closed loop), so a slow machine makes the run longer but is never overloaded: the
queue limit's 429 would be a right answer, but not the one in question. What counts was started between the
first change and the end of the last drain. How long a rolling update of three pods may take: see rolls.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from scenarios import manifests, models, rolls
from scenarios.clientpod import ClientPod, RunningLoad
from scenarios.kube import Kube, Object
from scenarios.models import Model
from scenarios.platform import Platform
from scenarios.rolls import Request, Roll, Sighting
from scenarios.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900, func_only=True)]

LONG_S = 5.0
# What costs a CPU is tokens; connection and drain are the same with one as with many.
SHORT = ("--prompt-tokens", "2", "--output-tokens", "1")
NUM_STREAM_CLIENTS = 8
KEPT = "--keep-alive"
MAX_MORE_ROLLS = 40  # where the machine needs more time for the amounts below
NUM_BUSY = 3  # pods
DRAIN_SECONDS = 3  # the default
MAX_MODEL_LEN = 8192
STOKER = "app.kubernetes.io/name in (stoker-operator,stoker-runtime)"


@dataclass(frozen=True)
class Amounts:
    """What happens, and what must at least have been asked between the first change and the last drain's end.

    Attributes:
        requests: short ones and streams together.
        short: short ones on new connections, and as many on kept ones.
        long_streams: those that took over LONG_S.
        short_clients: that use a new connection each time, and as many that keep theirs.
        rolls: of one pod.
        busy_rolls: of NUM_BUSY pods.
        bounds_rolls: a rolling update of NUM_BUSY pods that takes too long is a failure.
    """

    requests: int
    short: int
    long_streams: int
    short_clients: int
    rolls: int
    busy_rolls: int
    bounds_rolls: bool


# What all changes once take anyway, and the bar.
ONCE = Amounts(500, 150, 12, short_clients=4, rolls=1, busy_rolls=1, bounds_rolls=False)
BAR = Amounts(10_000, 3000, 50, short_clients=12, rolls=3, busy_rolls=3, bounds_rolls=True)
AMOUNTS = (
    pytest.param(ONCE, id="once"),
    pytest.param(BAR, id="bar", marks=(pytest.mark.long, pytest.mark.timeout(2400, func_only=True))),
)


@dataclass(frozen=True)
class Mark:
    """How far a load was when what counts began.

    Attributes:
        now_s: on the load's own clock.
        zero_s: when that clock was at 0, on time.monotonic.
        num_started: requests.
    """

    now_s: float
    zero_s: float
    num_started: int


@dataclass(frozen=True)
class Watched:
    """A rolling update as it was seen, on time.monotonic."""

    began_s: float
    sightings: tuple[Sighting, ...]


@pytest.fixture
def model(kube: Kube, namespace: str) -> Iterator[Model]:
    engine = {"maxModelLen": MAX_MODEL_LEN, "maxNumSeqs": 64}
    service = {"drainSeconds": DRAIN_SECONDS}
    model = models.apply(kube, manifests.modeldeployment("steady", namespace, engine=engine, service=service))
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


def roll(model: Model, max_num_seqs: int, timeout_s: float = 240) -> Watched:
    """Change the engine's settings, and look at the pods until only those of that revision are left."""
    pods = model.pods()
    sightings = [rolls.sighting(time.monotonic(), pods)]
    old = sightings[0].pods
    began_s = time.monotonic()
    model.edit(engine={"maxNumSeqs": max_num_seqs})

    def is_over() -> bool:
        is_settled = model.is_settled()
        pods = model.pods()
        sightings.append(rolls.sighting(time.monotonic(), pods))
        return is_settled and len(pods) == len(old) and sightings[-1].is_over(old)

    eventually(f"{model.name} is rolled", is_over, timeout_s, model.explain)
    return Watched(began_s, tuple(sightings))


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


def mark(load: RunningLoad, num_clients: int) -> Mark:
    """Look at a load of that many clients, each of which has a request in flight."""
    found = load.look()
    return Mark(found["now_s"], time.monotonic() - found["now_s"], len(found["e2e_s"]) + num_clients)


def is_enough(amounts: Amounts, loads: list[RunningLoad], marks: list[Mark]) -> bool:
    """Whether the amounts have been reached; a failure is enough, too.

    Args:
        amounts: which.
        loads: short requests, then such on kept connections, then streams.
        marks: of each load.
    """
    so_far = [load.look() for load in loads]
    new, kept, streams = (
        len(found["e2e_s"]) - mark.num_started for found, mark in zip(so_far, marks, strict=True)
    )
    num_long = sum(duration > LONG_S for duration in so_far[-1]["e2e_s"])
    has_failed = any(found["failed"] for found in so_far)
    is_many = new + kept + streams >= amounts.requests and min(new, kept) >= amounts.short
    return has_failed or (is_many and num_long >= amounts.long_streams)


def disturb(
    amounts: Amounts, platform: Platform, model: Model, loads: list[RunningLoad], marks: list[Mark]
) -> list[Watched]:
    """Everything that must not fail a request, and a few more rolls where the clients are slow.

    Returns:
        The rolling updates of NUM_BUSY pods.
    """
    settings = itertools.count(63, -1)
    for max_num_seqs in itertools.islice(settings, amounts.rolls):
        roll(model, max_num_seqs)
    scale(platform.kube, model, NUM_BUSY)
    watched = [
        roll(model, max_num_seqs, timeout_s=600)
        for max_num_seqs in itertools.islice(settings, amounts.busy_rolls)
    ]
    scale(platform.kube, model, 1)
    for max_num_seqs in itertools.islice(settings, MAX_MORE_ROLLS):
        if is_enough(amounts, loads, marks):
            break
        roll(model, max_num_seqs)
    drain_each_node(platform, model)
    return watched


def in_flight(reports: list[Object], marks: list[Mark]) -> list[Request]:
    """When each request was in flight, on time.monotonic."""
    return [
        Request(mark.zero_s + outcome["started_s"], mark.zero_s + outcome["started_s"] + outcome["e2e_s"])
        for report, mark in zip(reports, marks, strict=True)
        for outcome in report["records"]
    ]


@pytest.mark.parametrize("amounts", AMOUNTS)
def test_no_request_fails_in_rollouts_scaling_and_drains(
    amounts: Amounts, model: Model, platform: Platform, clients: ClientPod, figures: list[str]
) -> None:
    url = model.status()["url"]
    short = ("--concurrency", f"{amounts.short_clients}", *SHORT)
    loads = [clients.start_load(url, model.name, *short), clients.start_load(url, model.name, *short, KEPT)]
    try:
        tokens = f"{long_stream_tokens(clients, url, model.name)}"
        stream = ("--concurrency", f"{NUM_STREAM_CLIENTS}", "--output-tokens", tokens)
        loads.append(clients.start_load(url, model.name, *stream))
        num_clients = (amounts.short_clients, amounts.short_clients, NUM_STREAM_CLIENTS)
        marks = [mark(load, count) for load, count in zip(loads, num_clients, strict=True)]
        watched = disturb(amounts, platform, model, loads, marks)
        ended_s = [load.look()["now_s"] for load in loads]
    finally:
        reports = [load.stop() for load in loads]
    requests = in_flight(reports, marks)
    busy = [rolls.measure(seen.began_s, seen.sightings, requests, DRAIN_SECONDS) for seen in watched]
    keep(reports, busy)
    figures += [str(found) for found in busy]
    assert [outcome for report in reports for outcome in report["records"] if outcome["failure"]] == []
    counted = [
        [outcome for outcome in report["records"] if mark.now_s <= outcome["started_s"] < end_s]
        for report, mark, end_s in zip(reports, marks, ended_s, strict=True)
    ]
    new, kept, streams = (len(outcomes) for outcomes in counted)
    num_long = sum(outcome["e2e_s"] > LONG_S for outcome in counted[-1])
    figures.append(
        f"0 of {new + kept + streams} requests failed, {kept} of them on kept connections and "
        f"{new + streams} on new ones; {num_long} streams ({tokens} tokens) took over 5 s"
    )
    assert new + kept + streams >= amounts.requests
    assert min(new, kept) >= amounts.short
    assert num_long >= amounts.long_streams
    check(amounts, busy)


def check(amounts: Amounts, busy: list[Roll]) -> None:
    """Fail with what the rolling updates of busy pods broke, where they are bounded."""
    counts = [(len(found.starts), len(found.drains)) for found in busy]
    assert counts == [(NUM_BUSY, NUM_BUSY)] * amounts.busy_rolls
    faults = [fault for found in busy for fault in found.faults()]
    print("\n".join(faults))
    assert not (amounts.bounds_rolls and faults)


def keep(reports: list[Object], busy: list[Roll]) -> None:
    """Print summaries and rolling updates, and write them to the folder that STOKER_E2E_RESULTS names."""
    summaries: list[Any] = [{"load": report["load"], "summary": report["summary"]} for report in reports]
    results = {"loads": summaries, "busy_rolls": [asdict(found) | {"text": str(found)} for found in busy]}
    print(json.dumps(results))
    folder = os.environ.get("STOKER_E2E_RESULTS")
    if folder:
        Path(folder, "no_request_fails.json").write_text(json.dumps(results, indent=2) + "\n")
