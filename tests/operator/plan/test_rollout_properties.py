"""Random histories of a cluster: edits, crashes, evictions, drains, late watches, restarts of the operator.

The cluster model checks every action on its way in: enough pods answer, no more exist than the surge allows,
no request is cut off, no name is used twice. Here the history is made up, and in the end all must settle.
"""

from __future__ import annotations

from datetime import timedelta

from cluster_model import ClusterModel, is_ready, is_terminating, rank_of, revision_of, serves, uid_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from operator_builders import wanted_of

from stoker_operator.api import labels

LIMITS = st.sampled_from([(1, 0), (0, 1), (1, 1), (2, 0), ("50%", "50%"), (0, "100%"), ("25%", 0)])
NODES = st.sampled_from(["node-a", "node-b", "node-c"])
PICK = st.integers(0, 9)
MOST_ROUNDS = 150


def settle(cluster: ClusterModel) -> None:
    """Let the world do its part until nothing is left to do and nothing to wait for."""
    for _ in range(MOST_ROUNDS):
        cluster.sync()
        todo = cluster.run_pass()
        for pod in sorted(cluster.pods.values(), key=rank_of, reverse=True):  # leaders wait for the others
            name = pod["metadata"]["name"]
            if is_terminating(pod):
                cluster.finish(name)
            else:
                cluster.start(name)
        cluster.in_flight.clear()
        cluster.sync()
        if not cluster.next_plan().actions and cluster.next_plan().requeue_after_s is None:
            return
        cluster.advance(todo.requeue_after_s or 1.0)
    raise AssertionError(f"not settled after {MOST_ROUNDS} rounds: {cluster.next_plan()}")


class Rollouts(RuleBasedStateMachine):
    """Histories of one ModelDeployment."""

    @initialize(
        replicas=st.integers(0, 4), limits=LIMITS, room=st.sampled_from([(1, None), (1, 1), (3, None)])
    )
    def begin(self, replicas: int, limits: tuple[int | str, int | str], room: tuple[int, int | None]) -> None:
        """Groups have so many pods, and nodes room for so many."""
        surge, unavailable = limits
        size, slots = room
        self.rollout = {"maxSurge": surge, "maxUnavailable": unavailable}
        names = ("node-a", "node-b", "node-c")
        num_wanted = replicas if slots is None else min(replicas, len(names))
        self.cluster = ClusterModel(names, slots, size, replicas=num_wanted, rollout=self.rollout)
        settle(self.cluster)

    def _name(self, pick: int) -> str:
        names = sorted(self.cluster.pods)
        return names[pick % len(names)]

    def has_pods(self) -> bool:
        return bool(self.cluster.pods)

    @rule()
    def operator_runs(self) -> None:
        self.cluster.run_pass()

    @rule(num_passes=st.integers(1, 4))
    def operator_keeps_up_for_a_while(self, num_passes: int) -> None:
        for _ in range(num_passes):
            self.cluster.sync()
            self.cluster.run_pass()
            self.cluster.advance(2)

    @rule(max_writes=st.integers(0, 3))
    def operator_crashes_after_some_writes(self, max_writes: int) -> None:
        self.cluster.run_pass(max_writes=max_writes)
        self.cluster.sync()

    @rule(max_writes=st.integers(1, 3))
    def an_answer_is_lost(self, max_writes: int) -> None:
        self.cluster.run_pass(max_writes=max_writes, is_last_answer_lost=True)

    @rule()
    def watches_catch_up(self) -> None:
        self.cluster.sync()

    @rule(pick=PICK)
    @precondition(has_pods)
    def watch_delivers_one_pod(self, pick: int) -> None:
        self.cluster.sync_pod(self._name(pick))

    @rule(seconds=st.sampled_from([1, 5, 30, 200]))
    def time_passes(self, seconds: int) -> None:
        self.cluster.advance(seconds)

    @rule(pick=PICK)
    @precondition(has_pods)
    def pod_starts(self, pick: int) -> None:
        if not is_terminating(self.cluster.pods[self._name(pick)]):
            self.cluster.start(self._name(pick))

    @rule()
    def all_pods_start_and_the_terminating_finish(self) -> None:
        for name in sorted(self.cluster.pods):
            if is_terminating(self.cluster.pods[name]):
                self.cluster.finish(name)
            else:
                self.cluster.start(name)

    @rule(pick=PICK, is_started=st.booleans())
    @precondition(has_pods)
    def pod_stumbles(self, pick: int, is_started: bool) -> None:
        self.cluster.stumble(self._name(pick), is_started=is_started)

    @rule(pick=PICK)
    @precondition(has_pods)
    def pod_fails(self, pick: int) -> None:
        self.cluster.fail(self._name(pick))

    @rule(pick=PICK)
    @precondition(has_pods)
    def user_deletes_a_pod(self, pick: int) -> None:
        self.cluster.delete(self._name(pick))

    @rule(pick=PICK)
    @precondition(has_pods)
    def user_takes_a_pod_out_of_the_service(self, pick: int) -> None:
        self.cluster.relabel(self._name(pick), labels.SERVING, "")

    @rule(num_requests=st.integers(1, 5))
    def requests_arrive_everywhere(self, num_requests: int) -> None:
        for pod in self.cluster.alive():
            if is_ready(pod) and serves(pod):
                self.cluster.in_flight[uid_of(pod)] = num_requests

    @rule(pick=PICK)
    @precondition(has_pods)
    def pod_finishes_its_requests(self, pick: int) -> None:
        self.cluster.in_flight.pop(uid_of(self.cluster.pods[self._name(pick)]), None)

    @rule(replicas=st.integers(0, 4))
    def user_scales(self, replicas: int) -> None:
        self.cluster.edit(replicas=replicas)

    @rule(length=st.sampled_from([1024, 2048, 4096]))
    def user_edits_the_template(self, length: int) -> None:
        self.cluster.edit(engine={"maxModelLen": length})

    @rule(limits=LIMITS, paused=st.booleans())
    def user_edits_the_rollout(self, limits: tuple[int | str, int | str], paused: bool) -> None:
        self.cluster.edit(rollout={"maxSurge": limits[0], "maxUnavailable": limits[1], "paused": paused})

    @rule(suspend=st.booleans())
    def user_suspends_or_resumes(self, suspend: bool) -> None:
        self.cluster.edit(suspend=suspend)

    @rule(is_broken=st.booleans())
    def newest_revision_is_broken_or_mended(self, is_broken: bool) -> None:
        revision = wanted_of(self.cluster.model).revision
        (self.cluster.broken.add if is_broken else self.cluster.broken.discard)(revision)

    @rule(node=NODES, is_schedulable=st.booleans())
    def node_is_cordoned_or_not(self, node: str, is_schedulable: bool) -> None:
        self.cluster.set_node(node, is_schedulable=is_schedulable)

    @rule(node=NODES, is_ready=st.booleans())
    def node_is_lost_or_back(self, node: str, is_ready: bool) -> None:
        self.cluster.set_node(node, is_ready=is_ready)

    @rule(node=NODES)
    def node_is_deleted(self, node: str) -> None:
        self.cluster.remove_node(node)

    @rule()
    def pods_of_deleted_nodes_are_collected(self) -> None:
        self.cluster.collect_pods()

    def teardown(self) -> None:
        if not hasattr(self, "cluster") or self.cluster.is_violated:
            return
        if self.cluster.slots is None:
            self.cluster.broken.clear()
            self.cluster.set_node("node-a", is_schedulable=True, is_ready=True)
        else:
            self._fill_up()
        settle(self.cluster)
        self._check_fixed_point()

    def _fill_up(self) -> None:
        """A last edit, of a model that works, for as many pods as have room; what was broken stays broken."""
        cluster, rollout = self.cluster, self.cluster.model["spec"]["rollout"]
        for node in cluster.nodes:
            cluster.set_node(node, is_schedulable=True, is_ready=True)
        mended = {"engine": {"maxModelLen": 8192}, "rollout": {**rollout, "paused": False}}
        cluster.edit(replicas=len(cluster.nodes), **mended)
        revision = wanted_of(cluster.model).revision
        older = [pod for pod in cluster.alive() if revision_of(pod) != revision]
        if any(uid_of(pod) in cluster.answered for pod in older):
            # One that answered keeps its room until the user says otherwise, as the status advises.
            cluster.edit(rollout={"maxSurge": 0, "maxUnavailable": 1})

    def _check_fixed_point(self) -> None:
        cluster, wanted = self.cluster, wanted_of(self.cluster.model)
        scale, is_paused = wanted.scale, wanted.model.spec.rollout.paused
        revisions = {revision_of(pod) for pod in cluster.pods.values()}
        is_mixed = is_paused and len(revisions) > 1
        most = scale.num_wanted + (scale.max_surge if is_mixed else 0)
        assert scale.num_wanted <= cluster.num_groups() <= most
        assert cluster.num_available() == cluster.num_groups()
        assert len(cluster.pods) == cluster.num_groups() * cluster.size
        if not is_paused:
            assert revisions <= {wanted.revision}
        cluster.advance(timedelta(days=1).total_seconds())
        assert cluster.next_plan().actions == (), "time alone changes nothing"


Rollouts.TestCase.settings = settings(stateful_step_count=40)
TestRollouts = Rollouts.TestCase


TROUBLES = st.sampled_from(["edit", "pass", "crash", "fail", "start", "cordon", "uncordon", "time"])


@given(num_nodes=st.integers(1, 3), limits=LIMITS, troubles=st.lists(st.tuples(TROUBLES, PICK), max_size=12))
def test_what_never_answered_does_not_keep_a_working_edit_out_of_a_full_cluster(
    num_nodes: int, limits: tuple[int | str, int | str], troubles: list[tuple[str, int]]
) -> None:
    names = tuple(f"node-{number}" for number in range(num_nodes))
    rollout = {"maxSurge": limits[0], "maxUnavailable": limits[1]}
    cluster = ClusterModel(names, slots=1, replicas=num_nodes, rollout=rollout)
    cluster.is_broken = lambda pod: "--max-model-len=8192" not in pod["spec"]["containers"][0]["args"]
    settle(cluster)
    for trouble, pick in troubles:
        pods, node = sorted(cluster.pods), names[pick % num_nodes]
        if trouble == "edit":
            cluster.edit(engine={"maxModelLen": 16 + pick})
        elif trouble == "pass":
            cluster.sync()
            cluster.run_pass()
        elif trouble == "crash":
            cluster.run_pass(max_writes=pick % 3)
        elif trouble == "time":
            cluster.advance(10 * pick)
        elif trouble in ("cordon", "uncordon"):
            cluster.set_node(node, is_schedulable=trouble == "uncordon")
        elif pods and trouble == "fail":
            cluster.fail(pods[pick % len(pods)])
        elif pods:
            cluster.start(pods[pick % len(pods)])
    for node in names:
        cluster.set_node(node, is_schedulable=True)
    cluster.edit(engine={"maxModelLen": 8192})
    settle(cluster)
    assert cluster.num_available() == num_nodes
    assert len(cluster.pods) == num_nodes
