"""Groups with another pod beside ours, as `kubectl debug --copy-to --keep-labels` makes it."""

from __future__ import annotations

from operator_builders import NOW, make_observed, make_pod, make_wanted

from stoker_operator.api import labels
from stoker_operator.plan import Patch, plan


def test_every_pod_of_a_group_that_serves_is_drained_with_it() -> None:
    wanted = make_wanted(replicas=0)
    pod, copy = make_pod(wanted, 0), make_pod(wanted, 1)
    copy["metadata"]["labels"][labels.POD_GROUP] = pod["metadata"]["name"]
    actions = plan(wanted, make_observed(wanted, pod, copy), NOW).actions
    drained = {action.name for action in actions if isinstance(action, Patch)}
    assert drained == {pod["metadata"]["name"], copy["metadata"]["name"]}
