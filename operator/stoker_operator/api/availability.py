"""How many pods may be missing, and why: parts of ``spec`` that change no pod."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stoker_operator.api.schema import ApiModel, IntOrPercent, checked


class Rollout(ApiModel):
    """How pods are replaced when the pod-shaping part of the spec changes."""

    model_config = checked(
        (
            # The API server also tries the rule on the whole default, before it fills in what is inside.
            "!has(self.maxSurge) || !has(self.maxUnavailable) || "
            "!((self.maxSurge == 0 || self.maxSurge == '0%') && "
            "(self.maxUnavailable == 0 || self.maxUnavailable == '0%'))",
            "spec.rollout.maxSurge and spec.rollout.maxUnavailable must not both be 0: "
            "raise one, or no pod can ever be replaced",
        )
    )

    max_surge: Annotated[
        IntOrPercent,
        Field(description="Pods above spec.replicas during a rollout: a number, or a percentage rounded up."),
    ] = 1
    max_unavailable: Annotated[
        IntOrPercent,
        Field(
            description="Pods of spec.replicas that may be missing during a rollout: a number, or a "
            "percentage rounded down."
        ),
    ] = 0
    progress_deadline_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=2_592_000,
            description="Longest time without a step of a new pod: created, placed, containers created, "
            "ready. After that Stalled is true, with the reason ProgressDeadlineExceeded; older pods stay, "
            "and new ones are waited for all the same. A download or a load that takes longer needs more.",
        ),
    ] = 3600
    paused: Annotated[
        bool,
        Field(
            description="Replaces no pod because of its revision. Scaling and repair go on, with the "
            "revision that most pods answer with."
        ),
    ] = False


class PodDisruptionBudget(ApiModel):
    """The PodDisruptionBudget of the pods. It has the ModelDeployment's name."""

    max_unavailable: Annotated[
        IntOrPercent | None,
        Field(
            description="Pods of spec.replicas that evictions may take before others answer in their place: "
            "a number, or a percentage rounded up; 100% is no PodDisruptionBudget. "
            "spec.rollout.maxUnavailable by default: with 0 a drained node is left without a gap, and "
            "autoscalers that ask before they take a node never take one."
        ),
    ] = None
