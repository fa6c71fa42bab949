"""``spec.scheduling``: where pods run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stoker_operator.api.schema import AnyObject, ApiModel, StringMap, checked


class Toleration(ApiModel):
    """A taint that the pods tolerate."""

    key: Annotated[str | None, Field(max_length=316, description="Taint key; empty matches all.")] = None
    operator: Annotated[
        Literal["Exists", "Equal"] | None, Field(description="How the value is compared.")
    ] = None
    value: Annotated[str | None, Field(max_length=253, description="Taint value for Equal.")] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None,
        Field(description="Taint effect; empty matches all."),
    ] = None
    toleration_seconds: Annotated[
        int | None, Field(description="How long NoExecute is tolerated, in seconds.")
    ] = None


class TopologySpreadConstraint(ApiModel):
    """How replicas spread over zones, nodes or other domains, in the form that a pod's spec has it."""

    model_config = checked(
        (
            "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
            "spec.scheduling.topologySpreadConstraints with minDomains must have whenUnsatisfiable "
            "DoNotSchedule: change it, or remove minDomains",
        )
    )

    max_skew: Annotated[
        int, Field(ge=1, le=1000, description="Most pods that a domain may have more than another.")
    ]
    topology_key: Annotated[
        str,
        Field(
            min_length=1,
            max_length=316,
            description="Label of nodes whose value is the domain, such as topology.kubernetes.io/zone.",
        ),
    ]
    when_unsatisfiable: Annotated[
        Literal["DoNotSchedule", "ScheduleAnyway"],
        Field(description="Whether a pod waits that would be too many in its domain."),
    ]
    label_selector: Annotated[
        AnyObject | None,
        Field(description="Which pods count; the replicas of the same revision by default."),
    ] = None
    match_label_keys: Annotated[
        list[Annotated[str, Field(max_length=316)]] | None,
        Field(
            max_length=8, description="Labels whose values a pod that counts has in common with the new one."
        ),
    ] = None
    min_domains: Annotated[
        int | None, Field(ge=1, le=1000, description="Fewer domains than this count as having no pod.")
    ] = None
    node_affinity_policy: Annotated[
        Literal["Honor", "Ignore"] | None,
        Field(description="Whether nodes count that affinity and nodeSelector leave out."),
    ] = None
    node_taints_policy: Annotated[
        Literal["Honor", "Ignore"] | None,
        Field(description="Whether nodes count whose taints are not tolerated."),
    ] = None


class Scheduling(ApiModel):
    """Where pods may run."""

    node_selector: Annotated[
        StringMap | None, Field(max_length=64, description="Labels that a node must have.")
    ] = None
    tolerations: Annotated[
        list[Toleration] | None, Field(max_length=64, description="Taints that the pods tolerate.")
    ] = None
    affinity: Annotated[
        AnyObject | None, Field(description="Affinity, in the form that a pod's spec has it.")
    ] = None
    topology_spread_constraints: Annotated[
        list[TopologySpreadConstraint] | None,
        Field(
            max_length=8,
            description="How replicas spread over zones, nodes or other domains.",
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["topologyKey", "whenUnsatisfiable"],
            },
        ),
    ] = None
    priority_class_name: Annotated[
        str | None, Field(max_length=253, description="PriorityClass of the pods.")
    ] = None
    scheduler_name: Annotated[
        str | None, Field(max_length=253, description="Scheduler that places the pods.")
    ] = None
