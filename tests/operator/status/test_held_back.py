"""What the status says of a group that our gate keeps from nodes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from operator_builders import CONFIG, NOW, make_observed, make_wanted, shape_of, timestamp, with_size

from stoker_operator.desired.shape import member
from stoker_operator.observed import Turn
from stoker_operator.status import status

WANTED = with_size(make_wanted(), 2)
GROUP = f"smol-{WANTED.revision}-0"
GATED = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "SchedulingGated",
    "message": "blocked",
}
LATER = Turn(not_before=NOW + timedelta(seconds=40))


def told(turn: Turn | None, *, is_let_go: bool = False) -> dict[str, tuple[str, str, str]]:
    pods = []
    for rank in range(2):
        pod = member(shape_of(WANTED), rank, GROUP, WANTED.revision)
        pod["metadata"] |= {"uid": f"uid-{rank}", "creationTimestamp": timestamp(NOW)}
        if is_let_go:
            pod["spec"]["schedulingGates"] = []
        pods.append({**pod, "status": {"phase": "Pending", "conditions": [GATED]}})
    observed = make_observed(WANTED, *pods, recorded=(WANTED,))
    observed = replace(observed, turns={} if turn is None else {GROUP: turn})
    found = status(WANTED, observed, CONFIG, NOW)["conditions"]
    return {entry["type"]: (entry["status"], entry["reason"], entry["message"]) for entry in found}


@pytest.mark.parametrize(
    ("turn", "scheduled", "reason", "text"),
    [
        (Turn(ahead="other-1"), "Unknown", "WaitingForTurn", "after group other-1"),
        (Turn(), "Unknown", "WaitingForTurn", "when all its pods are there"),
        (LATER, "False", "Unschedulable", "no nodes for all 2 pods of group"),
    ],
    ids=["behind-another", "not-whole", "in-its-back-off"],
)
def test_who_is_held_back_says_why(turn: Turn, scheduled: str, reason: str, text: str) -> None:
    found = told(turn)
    assert found["Scheduled"][:2] == (scheduled, reason)
    assert found["Ready"][:2] == ("False", reason)
    assert text in found["Ready"][2]
    assert GROUP in found["Scheduled"][2]
    assert found["Stalled"][0] == "False"


def test_when_it_is_tried_again_stands_in_the_message() -> None:
    assert "tried again at 2026-03-01T12:00:40Z" in told(LATER)["Ready"][2]


def test_one_that_was_let_go_a_moment_ago_only_waits_for_a_node() -> None:
    assert told(None, is_let_go=True)["Scheduled"][:2] == ("Unknown", "Scheduling")
