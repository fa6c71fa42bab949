"""A label that claims many pods costs nothing: anybody may write one on any pod, and all namespaces pay."""

from __future__ import annotations

import tracemalloc

import pytest
from group_builders import pods_of
from operator_builders import NOW, make_observed, make_pod, make_wanted

from stoker_operator.api import labels
from stoker_operator.plan import plan
from stoker_operator.plan.turns import entrant, ticket

MANY = "1000000"  # a label may say a thousand times as many
MAX_BYTES = 5_000_000


def test_the_lines_of_groups_take_no_memory_for_a_size_that_cannot_be() -> None:
    pod = pods_of("a")[0]
    pod["metadata"]["labels"][labels.GROUP_SIZE] = MANY
    tracemalloc.start()
    try:
        made = ticket(pod)
        assert made is None or entrant([made]) is None
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("is_gated", [False, True])
def test_nor_do_plans(is_gated: bool) -> None:
    wanted = make_wanted()
    pod = make_pod(wanted)
    pod["metadata"]["labels"][labels.GROUP_SIZE] = MANY
    if is_gated:
        pod["spec"] |= {"schedulingGates": [{"name": labels.GROUP_GATE}]}
        del pod["spec"]["nodeName"]
    tracemalloc.start()
    try:
        plan(wanted, make_observed(wanted, pod, recorded=()), NOW)
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
