"""What Ready stands for, over made-up histories: edits, scaling, pods that come to answer and stop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_builders import CONFIG, NOW, make_model, make_observed, make_pod, make_wanted

from stoker_operator.observed import Refusal
from stoker_operator.status import events, status

Object = dict[str, Any]
UNPLACED = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: 1 Insufficient nvidia.com/gpu."}


class History:
    """One ModelDeployment whose status is written after each step."""

    def __init__(self, replicas: int = 1, **rollout: Any) -> None:
        self.replicas = replicas
        self.rollout = rollout
        self.max_model_len = 16
        self.num_answering = 0
        self.stored: Object = {}

    def step(self, refusals: tuple[Refusal, ...] = (), **pod: Any) -> Object:
        """Write the status as it is now, and return its Ready condition."""
        spec: Object = {"rollout": self.rollout, "engine": {"maxModelLen": self.max_model_len}}
        wanted = make_wanted(replicas=self.replicas, **spec)
        answering = range(min(self.num_answering, self.replicas))
        rest = range(len(answering), self.replicas)
        pods = [make_pod(wanted, n) for n in answering]
        pods += [make_pod(wanted, n, is_ready=False, **pod) for n in rest]
        observed = make_observed(wanted, *pods, model=make_model(status=self.stored))
        self.stored = status(wanted, replace(observed, refusals=refusals), CONFIG, NOW)
        return self.condition("Ready")

    def condition(self, kind: str) -> Object:
        found: Object = next(c for c in self.stored["conditions"] if c["type"] == kind)
        return found

    @property
    def promised(self) -> int:
        count: int = self.stored["promisedReplicas"]
        return count


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("scale"), st.integers(0, 5)),
        st.tuples(st.just("answer"), st.integers(0, 5)),
        st.tuples(st.just("edit"), st.integers(16, 18)),
        st.tuples(st.just("limit"), st.sampled_from([0, 1, 3, "50%"])),
    ),
    max_size=25,
)


@given(steps=STEPS)
def test_ready_is_kept_through_scale_ups_and_never_promises_too_much(
    steps: list[tuple[str, Any]],
) -> None:
    history = History()
    was_complete = False
    for kind, value in [("answer", 0), *steps]:
        before, num_before, was_ready = history.replicas, history.num_answering, bool(history.stored)
        was_ready = was_ready and history.condition("Ready")["status"] == "True"
        promised_before = history.promised if history.stored else 0
        if kind == "scale":
            history.replicas = value
            history.num_answering = min(history.num_answering, value)
        elif kind == "answer":
            history.num_answering = min(value, history.replicas)
        elif kind == "edit" and value != history.max_model_len:
            history.max_model_len, history.num_answering, was_complete = value, 0, False
        elif kind == "limit":
            history.rollout = {"maxUnavailable": value}
        is_ready = history.step()["status"] == "True"
        is_complete = history.num_answering >= history.replicas > 0
        was_complete = (was_complete and history.replicas > 0) or is_complete
        if history.replicas:
            assert not is_ready or history.num_answering >= history.promised >= 1
            assert not is_ready or was_complete, "ready before all of a revision answered once"
            assert is_ready or not is_complete
        assert history.promised <= history.replicas
        if kind == "scale" and 0 < before <= value:
            assert history.num_answering == num_before
            assert is_ready or not was_ready, "a scale-up alone"
            assert history.promised >= promised_before or history.rollout
        if is_ready and not is_complete and history.replicas:
            assert history.condition("Reconciling")["status"] == "True"
        written = history.stored
        history.step()
        assert history.stored == written, "a second look changes nothing"


def test_a_scale_up_is_reconciling_until_it_answers() -> None:
    history = History(2)
    history.num_answering = 2
    assert history.step()["message"] == "2 of 2 replicas answer"
    history.replicas = 3
    ready = history.step()
    assert (ready["status"], ready["reason"]) == ("True", "Ready")
    assert ready["message"] == "2 of 3 replicas answer, and 2 are promised until all do"
    reconciling = history.condition("Reconciling")
    assert (reconciling["status"], reconciling["reason"]) == ("True", "LoadingModel")
    history.num_answering = 1
    assert history.step()["status"] == "False"
    history.num_answering = 3
    history.step()
    assert history.promised == 3
    assert history.condition("Reconciling")["status"] == "False"


def test_a_revision_is_ready_when_all_of_it_answer_and_stays_so_within_the_limit() -> None:
    history = History(3, maxUnavailable=1)
    history.num_answering = 2
    assert history.step()["status"] == "False"
    history.num_answering = 3
    assert history.step()["status"] == "True"
    assert history.promised == 2
    history.num_answering = 2
    assert history.step()["status"] == "True"
    history.num_answering = 1
    assert history.step()["status"] == "False"


def test_a_limit_of_all_promises_one_at_least() -> None:
    history = History(3, maxUnavailable="100%")
    history.num_answering = 3
    history.step()
    history.num_answering = 0
    assert history.step()["status"] == "False"


def test_a_start_from_none_is_ready_when_all_answer() -> None:
    history = History(0)
    assert history.step()["reason"] == "ScaledToZero"
    history.replicas = 2
    assert history.step()["status"] == "False"
    history.num_answering = 1
    assert history.step()["status"] == "False"


@pytest.mark.parametrize(
    ("what", "is_ready"), [("pod smol-1a2b3c4d-1", True), ("service smol", False)], ids=["pods", "service"]
)
def test_a_refused_scale_up_stalls_and_leaves_ready_alone(what: str, is_ready: bool) -> None:
    history = History(1)
    history.num_answering = 1
    history.step()
    history.replicas = 2
    ready = history.step(refusals=(Refusal(what, "exceeded quota: gpus"),))
    assert ready["status"] == str(is_ready)
    stalled = history.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "Refused")


def test_what_holds_up_a_scale_up_is_told_as_an_event() -> None:
    history = History(1)
    history.num_answering = 1
    history.step()
    before = history.stored
    history.replicas = 2
    lost = {"conditions": [UNPLACED], "containerStatuses": []}
    history.step(node=None, phase="Pending", status=lost)
    (event,) = events(before, history.stored, ())
    assert (event.type, event.reason) == ("Warning", "Unschedulable")
    assert events(history.stored, history.stored, ()) == []


def test_a_status_of_an_operator_that_knew_no_promise_is_made_up_for() -> None:
    history = History(2)
    history.num_answering = 2
    history.step()
    del history.stored["promisedReplicas"]
    assert history.step()["status"] == "True"
    assert history.promised == 2
