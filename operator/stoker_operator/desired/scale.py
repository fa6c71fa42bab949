"""How many replicas are wanted, and how many of them may be missing or too many. Pure.

What decides the number is apart from the spec, so that something else than `spec.replicas` can do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from stoker_operator.api import ModelDeployment


@dataclass(frozen=True, slots=True)
class Scale:
    """A number of replicas, and what follows from it.

    Args:
        num_wanted: replicas that should serve.
        max_surge: replicas above `num_wanted` during a rollout.
        max_unavailable: replicas of `num_wanted` that a rollout may take away.
        max_disrupted: replicas of `num_wanted` that evictions may take away.
    """

    num_wanted: int
    max_surge: int
    max_unavailable: int
    max_disrupted: int


def wanted_replicas(model: ModelDeployment, num_existing: int = 0) -> int:
    """Return how many replicas should serve: as many as the spec says, and none while suspended.

    Args:
        model: whose replicas.
        num_existing: those that exist; they are what is wanted where the spec's number cannot be read, which
            is never the case of what `parse` returns.
    """
    if model.spec.suspend:
        return 0
    return num_existing if "replicas" in model.unread else model.spec.replicas


def scale_of(model: ModelDeployment, num_wanted: int) -> Scale:
    """Return what the limits of a ModelDeployment, which may be percentages, mean for so many replicas."""
    rollout, own = model.spec.rollout, model.spec.pod_disruption_budget.max_unavailable
    max_unavailable = _resolve(rollout.max_unavailable, num_wanted, math.floor)
    # With neither limit a rollout could not begin.
    max_surge = _resolve(rollout.max_surge, num_wanted, math.ceil) or int(max_unavailable == 0)
    # Rounded as Kubernetes does in a budget.
    max_disrupted = max_unavailable if own is None else _resolve(own, num_wanted, math.ceil)
    return Scale(num_wanted, max_surge, max_unavailable, max_disrupted)


def _resolve(value: int | str, total: int, rounding: Callable[[float], int]) -> int:
    if isinstance(value, int):
        return value
    return rounding(int(value.removesuffix("%")) * total / 100)
