"""A record that somebody else owns says nothing about our groups, whatever label it has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from operator_builders import NOW, make_observed, make_pod, make_record, make_wanted

from stoker_operator.plan import plan


@pytest.mark.parametrize("data", [{"size": 2}, {"size": 2, "template": {}}])
def test_a_foreign_record_breaks_no_group(data: Any) -> None:
    wanted = make_wanted()
    own, foreign = make_record(wanted), make_record(wanted)
    owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "x", "uid": "x", "controller": True}
    foreign["metadata"] |= {"name": "x-1", "uid": "uid-x-1", "ownerReferences": [owner]}
    foreign["data"] = data
    observed = replace(make_observed(wanted, make_pod(wanted)), revisions=(own, foreign))
    assert not plan(wanted, observed, NOW).actions
