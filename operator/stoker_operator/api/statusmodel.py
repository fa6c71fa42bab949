"""``status`` of a ModelDeployment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stoker_operator.api.schema import ApiModel


class Condition(ApiModel):
    """One aspect of the state, in Kubernetes' usual form."""

    type: Annotated[str, Field(max_length=316, description="Which aspect.")]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="Whether it holds.")]
    observed_generation: Annotated[
        int | None, Field(ge=0, description="Generation of the spec that this speaks of.")
    ] = None
    last_transition_time: Annotated[
        str, Field(description="When `status` last changed.", json_schema_extra={"format": "date-time"})
    ]
    reason: Annotated[str, Field(min_length=1, max_length=1024, description="Why, in one word.")]
    message: Annotated[str, Field(max_length=32_768, description="Why, for a person.")]


class Status(ApiModel):
    """What is."""

    # Tools that find no status at all take an object for finished before any operator has seen it.
    observed_generation: Annotated[
        int,
        Field(description="Generation of the spec that this status speaks of; -1 until an operator saw one."),
    ] = -1
    conditions: Annotated[
        list[Condition] | None,
        Field(
            description="Ready, Reconciling, Stalled, Scheduled and ModelLoaded; DrainUnobserved, "
            "DefaultsOutdated and ReplicasContested only while they hold.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = None
    url: Annotated[str | None, Field(description="Address that clients call.")] = None
    revision: Annotated[
        str | None, Field(description="Hash of what the current generation asks of its pods.")
    ] = None
    restarted_at: Annotated[
        str | None,
        Field(description="Newest `stoker.dev/restarted-at` so far; pods of the revision are newer."),
    ] = None
    replicas: Annotated[int | None, Field(description="Replicas that exist.")] = None
    ready_replicas: Annotated[int | None, Field(description="Replicas of any revision that answer.")] = None
    updated_replicas: Annotated[int | None, Field(description="Replicas of the current revision.")] = None
    promised_replicas: Annotated[
        int | None,
        Field(
            description="Replicas of the current revision that Ready stands for: spec.replicas less "
            "spec.rollout.maxUnavailable, but one at least, from when all answered. 0 until then; a "
            "scale-up raises it once all of the new number answer."
        ),
    ] = None
    selector: Annotated[str | None, Field(description="Label selector of the replicas.")] = None
