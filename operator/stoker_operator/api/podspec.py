"""``spec.pod``, and the resources of downloads: details of the pods' manifests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stoker_operator.api.schema import AnyObject, ApiModel, Quantity, StringMap, checked, no_own_keys, rules
from stoker_operator.api.volumes import Volume, VolumeMount

_QUANTITIES = "self.all(key, type(self[key]) == int ? self[key] >= 0 : isQuantity(self[key]))"
_QUANTITY_RULES = rules((_QUANTITIES, "spec.pod.resources must hold quantities such as 500m or 16Gi"))
# What a quota counts for every container, and what a download uses.
FETCH_RESOURCES = ("cpu", "memory", "ephemeral-storage")
_FETCH_RULES = rules(
    (_QUANTITIES, "spec.model.fetch.resources must hold quantities such as 500m or 16Gi"),
    (
        f"self.all(key, key in {list(FETCH_RESOURCES)})",
        "spec.model.fetch.resources must hold cpu, memory or ephemeral-storage only: "
        "a download uses nothing else",
    ),
)


class Resources(ApiModel):
    """CPU and memory of the engine's container."""

    requests: Annotated[
        dict[str, Quantity] | None,
        Field(max_length=16, description="What is reserved.", json_schema_extra=_QUANTITY_RULES),
    ] = None
    limits: Annotated[
        dict[str, Quantity] | None,
        Field(max_length=16, description="What is allowed.", json_schema_extra=_QUANTITY_RULES),
    ] = None


class FetchResources(ApiModel):
    """CPU, memory and disk of the init container that downloads the model."""

    requests: Annotated[
        dict[str, Quantity] | None,
        Field(max_length=16, description="What is reserved.", json_schema_extra=_FETCH_RULES),
    ] = None
    limits: Annotated[
        dict[str, Quantity] | None,
        Field(max_length=16, description="What is allowed.", json_schema_extra=_FETCH_RULES),
    ] = None


class EnvVar(ApiModel):
    """An environment variable of the engine's container."""

    model_config = checked(
        (
            "!(has(self.value) && has(self.valueFrom))",
            "spec.pod.env entries must have value or valueFrom, not both: remove one",
        )
    )

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            description="Name of the variable.",
            json_schema_extra=rules(
                (
                    "self.matches('^[A-Za-z_][A-Za-z0-9_.-]*$')",
                    "spec.pod.env names must begin with a letter or _ and hold letters, digits, _, . or -",
                )
            ),
        ),
    ]
    value: Annotated[str | None, Field(max_length=8192, description="Its value.")] = None
    value_from: Annotated[
        AnyObject | None, Field(description="Source of the value, in the form that a pod's spec has it.")
    ] = None


class LocalReference(ApiModel):
    """A Secret in the same namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the Secret.")]


_Id = Annotated[int, Field(ge=0, le=2_147_483_647)]


class SecurityContext(ApiModel):
    """Who the containers run as. The rest of the restricted pod security standard they always have."""

    run_as_user: Annotated[
        int | None,
        Field(ge=1, le=2_147_483_647, description="User, not root; 10001, or what the platform assigns."),
    ] = None
    run_as_group: Annotated[
        int | None,
        Field(ge=0, le=2_147_483_647, description="Group; 10001, or what the platform assigns."),
    ] = None
    fs_group: Annotated[
        int | None,
        Field(
            ge=0,
            le=2_147_483_647,
            description="Group that owns the files of volumes; 10001, or what the platform assigns.",
        ),
    ] = None
    fs_group_change_policy: Annotated[
        Literal["OnRootMismatch", "Always"] | None,
        Field(description="When the owner of a volume's files is changed; OnRootMismatch by default."),
    ] = None
    supplemental_groups: Annotated[
        list[_Id] | None, Field(max_length=32, description="Further groups, such as those of shared storage.")
    ] = None


class Pod(ApiModel):
    """Details of the pods."""

    model_config = checked(
        (
            "!has(self.volumeMounts) || self.volumeMounts.all(mount, "
            "has(self.volumes) && self.volumes.exists(volume, volume.name == mount.name))",
            "spec.pod.volumeMounts must name volumes of spec.pod.volumes: add one, or correct the name",
        )
    )

    image: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1024,
            description="Runtime image; the operator's default if not set. "
            "The init container that downloads a model runs the operator's default in any case.",
        ),
    ] = None
    image_pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"] | None,
        Field(description="When the runtime image is pulled."),
    ] = None
    resources: Annotated[Resources | None, Field(description="CPU and memory of the engine's container.")] = (
        None
    )
    env: Annotated[
        list[EnvVar] | None,
        Field(
            max_length=128,
            description="Environment variables of the engine's container.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = None
    labels: Annotated[
        StringMap | None,
        Field(
            max_length=64,
            description="More labels of the pods.",
            json_schema_extra=no_own_keys("spec.pod.labels keys"),
        ),
    ] = None
    annotations: Annotated[
        StringMap | None,
        Field(
            max_length=64,
            description="More annotations of the pods.",
            json_schema_extra=no_own_keys("spec.pod.annotations keys"),
        ),
    ] = None
    image_pull_secrets: Annotated[
        list[LocalReference] | None,
        Field(max_length=16, description="Secrets for pulling the runtime image and oci:// models."),
    ] = None
    runtime_class_name: Annotated[
        str | None, Field(max_length=253, description="RuntimeClass of the pods.")
    ] = None
    service_account_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=253,
            description="ServiceAccount of the pods, for identities of a cloud and for security policies. No "
            "token of it is mounted.",
            json_schema_extra=rules(
                (
                    "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
                    "spec.pod.serviceAccountName must be the name of a ServiceAccount: lower-case letters, "
                    "digits, dashes and dots",
                )
            ),
        ),
    ] = None
    security_context: Annotated[SecurityContext | None, Field(description="Who the containers run as.")] = (
        None
    )
    volumes: Annotated[
        list[Volume] | None,
        Field(
            max_length=32,
            description="More volumes of the pods.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = None
    volume_mounts: Annotated[
        list[VolumeMount] | None,
        Field(
            max_length=32,
            description="Where the containers, the engine's and the download's, have those volumes.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["mountPath"]},
        ),
    ] = None
    termination_grace_period_seconds: Annotated[
        int,
        Field(
            ge=15,
            le=86_400,
            description="How long a pod may take to finish its requests before it is killed, in seconds.",
        ),
    ] = 120
