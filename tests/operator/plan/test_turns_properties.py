"""Random ModelDeployments whose groups compete for accelerators: who fits goes, and nobody is stuck.

Plans, caches that lag, crashes and the order of all that happens are made up; the pods and plans are real.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from typing import Any

from cluster_model import ClusterModel, group_of, is_terminating
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker_operator.observed import Observed, Reading
from stoker_operator.plan import Create
from stoker_operator.plan.turns import MAX_BACKOFF_S, PATIENCE_S, SPREAD_S, Id, Ticket, entrant, ticket, turns

Object = dict[str, Any]

KINDS = ("example.com/a", "example.com/b")
STEP_S = 15.0
NUM_WILD, NUM_CALM = 20, 90
HALF_S = PATIENCE_S + SPREAD_S + 4 * STEP_S  # so long a group may hold a part of what it wants
# So long one may wait that would fit: its own back-off, and a turn of each of those before it.
MOST_S = MAX_BACKOFF_S + 8 * (PATIENCE_S + SPREAD_S)


class Rival(ClusterModel):
    """One of several ModelDeployments on the accelerators of one cluster."""

    def __init__(self, cluster: Cluster, name: str, size: int, wants: dict[str, int], replicas: int) -> None:
        self.cluster, self.wants = cluster, wants
        super().__init__(("node-a",), None, size, name=name, uid=f"uid-{name}", replicas=replicas)

    def observed(self, readings: dict[str, Reading] | None = None) -> Observed:
        """What the caches hold, with the turns that follow from those of all."""
        name = self.model["metadata"]["name"]
        found = self.cluster.turns()
        own = {group: turn for (owner, group), turn in found.items() if owner == name}
        return replace(super().observed(readings), turns=own)

    def _create(self, action: Create) -> None:
        super()._create(action)
        pod = self.pods[action.name]
        # Uids are of the whole cluster, and the accelerators are what the groups differ in.
        pod["metadata"]["uid"] = f"{self.model['metadata']['name']}-{pod['metadata']['uid']}"
        limits = {kind: str(count) for kind, count in self.wants.items() if count}
        pod["spec"]["containers"][0]["resources"] = {"limits": limits}
        del pod["status"]["startTime"]


class Cluster:
    """Accelerators of some kinds, and those who want them; all pods run on one node that has them all.

    Args:
        capacity: accelerators by kind.
        rivals: size of a group, what each of its pods wants, number of groups.
    """

    def __init__(
        self, capacity: dict[str, int], rivals: list[tuple[int, dict[str, int], int]], rng: random.Random
    ) -> None:
        self.capacity = capacity
        self.rng = rng
        self.rivals: list[Rival] = []
        for number, (size, wants, replicas) in enumerate(rivals):
            self.rivals.append(Rival(self, f"model-{number}", size, wants, replicas))

    def turns(self) -> dict[Id, Any]:
        """Whose turn it is, by what the caches hold."""
        tickets: dict[Id, list[Ticket]] = defaultdict(list)
        for rival in self.rivals:
            for pod in rival.cached_pods.values():
                found = ticket(pod)
                if found is not None:
                    tickets[found.id].append(found)
        entrants = [one for found in tickets.values() if (one := entrant(found)) is not None]
        return turns(entrants, (), (), self.rivals[0].now)

    def pods(self) -> list[tuple[Rival, Object]]:
        """All pods."""
        return [(rival, pod) for rival in self.rivals for pod in rival.pods.values()]

    def free(self) -> dict[str, int]:
        """Accelerators that nobody holds."""
        left = dict(self.capacity)
        for rival, pod in self.pods():
            for kind, count in rival.wants.items() if pod["spec"].get("nodeName") else ():
                left[kind] -= count
        return left

    def fits(self, rival: Rival, num_pods: int) -> bool:
        """Whether there is room for so many more of its pods."""
        left = self.free()
        return all(left[kind] >= count * num_pods for kind, count in rival.wants.items())

    def step(self, *, is_calm: bool) -> None:
        """Something of everything happens, in any order."""
        waiting = self.waiting()
        for rival in self.rng.sample(self.rivals, len(self.rivals)):
            chance = 1.0 if is_calm else self.rng.random()
            if is_calm and rival not in waiting:
                continue  # a pass would find nothing to do
            if chance > 0.3:
                rival.sync()
            if chance > 0.5:
                rival.run_pass()
            elif chance > 0.2:
                rival.run_pass(max_writes=self.rng.randrange(4), is_last_answer_lost=chance < 0.3)
        pods = self.pods()
        for rival, pod in self.rng.sample(pods, len(pods)):
            name = pod["metadata"]["name"]
            if is_terminating(pod):
                rival.finish(name)
            elif pod["spec"].get("nodeName") or self.fits(rival, 1):
                rival.start(name)
        for rival in self.rivals:
            rival.advance(STEP_S)

    def waiting(self) -> list[Rival]:
        """Whose groups do not all have nodes for all their pods."""
        return [
            rival
            for rival in self.rivals
            if sum("nodeName" in pod["spec"] for pod in rival.alive())
            < rival.size * rival.model["spec"]["replicas"]
        ]

    def halves(self) -> set[str]:
        """Groups that hold something, and not all that they want."""
        placed: dict[str, int] = defaultdict(int)
        sizes: dict[str, int] = {}
        for rival, pod in self.pods():
            placed[group_of(pod)] += "nodeName" in pod["spec"]
            sizes[group_of(pod)] = rival.size
        return {group for group, count in placed.items() if 0 < count < sizes[group]}


RIVAL = st.tuples(
    st.integers(2, 4),
    st.sampled_from([(1, 0), (2, 0), (0, 1), (1, 1)]).map(
        lambda counts: dict(zip(KINDS, counts, strict=True))
    ),
    st.integers(1, 2),
)


@settings(max_examples=10, deadline=None)
@given(
    capacity=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    rivals=st.lists(RIVAL, min_size=1, max_size=4),
    seed=st.integers(0, 1_000_000),
)
def test_whoever_fits_goes_and_halves_are_given_back(
    capacity: tuple[int, int], rivals: list[tuple[int, dict[str, int], int]], seed: int
) -> None:
    cluster = Cluster(dict(zip(KINDS, capacity, strict=True)), rivals, random.Random(seed))
    for _ in range(NUM_WILD):
        cluster.step(is_calm=False)
    half_since: dict[str, int] = {}
    fits_since = 0
    for number in range(NUM_CALM):
        cluster.step(is_calm=True)
        waiting, halves = cluster.waiting(), cluster.halves()
        half_since = {group: half_since.get(group, number) for group in halves}
        half_s = max(((number - since) * STEP_S for since in half_since.values()), default=0.0)
        assert half_s <= HALF_S, f"{halves} hold a part for ever"
        could_go = not halves and any(cluster.fits(rival, rival.size) for rival in waiting)
        fits_since = fits_since if could_go else number
        assert (number - fits_since) * STEP_S <= MOST_S, "there is room for one that waits"
        if not waiting:
            return
