"""Keeping a pod off nodes adds to what the user asked for, and can be taken back exactly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_operator.desired.avoidance import admit, avoid

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
RULES = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["gpu", "zone"]),
        "operator": st.sampled_from(["In", "NotIn"]),
        "values": st.lists(st.sampled_from("abc"), min_size=1, max_size=2),
    }
)
FIELDS = st.fixed_dictionaries(
    {"key": st.just("metadata.name"), "operator": st.just("In"), "values": st.just(["node-a"])}
)
TERMS = st.fixed_dictionaries(
    {"matchExpressions": st.lists(RULES, min_size=1, max_size=2)},
    optional={"matchFields": st.lists(FIELDS, min_size=1, max_size=1)},
)
PREFERRED = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {}}]}
SPECS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"containers": []}),
    st.just({"affinity": {"podAntiAffinity": {"x": 1}}}),
    st.just({"affinity": {"nodeAffinity": PREFERRED}}),
    st.lists(TERMS, min_size=1, max_size=3).map(
        lambda terms: {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}, **PREFERRED}}}
    ),
)
NODES = st.lists(st.sampled_from(["node-a", "node-b", "node-c"]), max_size=3, unique=True)


@given(spec=SPECS, nodes=NODES)
def test_what_was_added_is_taken_back(spec: dict[str, Any], nodes: list[str]) -> None:
    assert admit(avoid(spec, nodes), nodes) == spec


@given(spec=SPECS, nodes=NODES)
def test_every_alternative_excludes_every_node(spec: dict[str, Any], nodes: list[str]) -> None:
    affinity = avoid(spec, nodes).get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get(REQUIRED, {}).get("nodeSelectorTerms", [])
    assert bool(terms) or not nodes
    for term in terms:
        rules = [rule["values"] for rule in term.get("matchFields", ()) if rule["operator"] == "NotIn"]
        assert rules == [[node] for node in nodes]


@pytest.mark.parametrize("nodes", [[], ["node-a"]], ids=["none", "one"])
def test_what_fits_no_node_does_not_fit_others_afterwards(nodes: list[str]) -> None:
    nothing: dict[str, Any] = {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{}]}}}}
    assert avoid(nothing, nodes) == nothing
