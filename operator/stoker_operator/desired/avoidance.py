"""Nodes that a single pod must not go to: where its predecessors failed, and nodes that do not report.

They are no part of a revision. A pod carries them in its required node affinity, and their names in an
annotation, so that its template can be read back without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def avoid(spec: Mapping[str, Any], nodes: Iterable[str]) -> dict[str, Any]:
    """Return a pod's spec that fits no node of these names.

    Terms of a node affinity are alternatives, so each of them gets the rule. A field's rule may hold one
    value only (ValidateNodeFieldSelectorRequirement), so each node is a rule of its own.
    """
    rules = [_rule(node) for node in nodes]
    if not rules:
        return dict(spec)
    terms = [
        {**term, "matchFields": [*term.get("matchFields", ()), *rules]} if term else term
        for term in _terms(spec)
    ]
    return _with_terms(spec, terms or [{"matchFields": rules}])


def admit(spec: Mapping[str, Any], nodes: Iterable[str]) -> dict[str, Any]:
    """Return what `avoid` was given, from what it returned."""
    rules = [_rule(node) for node in nodes]
    terms = _terms(spec)
    if not rules or not terms:
        return dict(spec)
    left = [(term, _without(term, rules)) for term in terms]
    return _with_terms(spec, [after for before, after in left if after or not before])


def _rule(node: str) -> dict[str, Any]:
    return {"key": "metadata.name", "operator": "NotIn", "values": [node]}


def _terms(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    return list((affinity.get(_REQUIRED) or {}).get("nodeSelectorTerms") or ())


def _without(term: dict[str, Any], rules: list[dict[str, Any]]) -> dict[str, Any]:
    left = [rule for rule in term.get("matchFields", ()) if rule not in rules]
    rest = {key: value for key, value in term.items() if key != "matchFields"}
    return {**rest, "matchFields": left} if left else rest


def _with_terms(spec: Mapping[str, Any], terms: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the terms in their place, and leave out what would hold nothing."""
    affinity = dict(spec.get("affinity") or {})
    node_affinity = dict(affinity.pop("nodeAffinity", None) or {})
    node_affinity.pop(_REQUIRED, None)
    if terms:
        node_affinity[_REQUIRED] = {"nodeSelectorTerms": terms}
    if node_affinity:
        affinity["nodeAffinity"] = node_affinity
    rest = {key: value for key, value in spec.items() if key != "affinity"}
    return {**rest, "affinity": affinity} if affinity else rest
