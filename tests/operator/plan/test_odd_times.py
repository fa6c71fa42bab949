"""Times at the ends of the calendar stand in annotations as well as any others, and count as absent."""

from __future__ import annotations

import pytest
from group_builders import pods_of
from operator_builders import NOW, make_observed, make_pod, make_record, make_wanted

from stoker_operator.api import labels
from stoker_operator.plan import plan
from stoker_operator.plan.pasts import noted_pasts, pasts_text
from stoker_operator.plan.turns import entrant, ticket, turns

LAST, FIRST = "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"


@pytest.mark.parametrize("text", [LAST, FIRST])
def test_a_drain_since_then_is_planned(text: str) -> None:
    wanted = make_wanted()
    pod = make_pod(wanted, is_serving=False)
    pod["metadata"]["annotations"][labels.DRAINING_SINCE] = text
    assert plan(wanted, make_observed(wanted, pod), NOW).actions


@pytest.mark.parametrize("text", [LAST, FIRST])
def test_a_group_that_was_let_go_then_stands_in_its_line(text: str) -> None:
    pods = pods_of("a", let_go_at=NOW)
    for pod in pods:
        pod["metadata"]["annotations"][labels.LET_GO_AT] = text
    found = entrant([made for pod in pods if (made := ticket(pod))])
    assert found is not None
    assert turns([found], set(), set(), NOW)


@pytest.mark.parametrize("text", [LAST, FIRST])
def test_a_failure_of_then_is_written_again(text: str) -> None:
    stored = make_record(make_wanted())
    note = f'[{{"group":"g","failures":2,"failedAt":"{text}"}}]'
    stored["metadata"]["annotations"] = {labels.FAILURES: note}
    assert pasts_text(noted_pasts(stored)) == ""
