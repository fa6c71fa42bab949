"""What we write we can read again, also after a count that somebody made up."""

from __future__ import annotations

from operator_builders import NOW, make_observed, make_pod, make_wanted

from stoker_operator.api import labels
from stoker_operator.plan import Create, plan
from stoker_operator.plan.pods import noted_count


def test_the_successor_of_one_with_a_huge_count_still_has_a_count() -> None:
    wanted = make_wanted()
    pod = make_pod(wanted, phase="Failed", is_ready=False, num_restarts=999_999_999)
    created = [a for a in plan(wanted, make_observed(wanted, pod), NOW).actions if isinstance(a, Create)]
    (manifest,) = [action.manifest for action in created if action.kind == "Pod"]
    assert noted_count(manifest["metadata"]["annotations"][labels.RESTARTS]) > 0
