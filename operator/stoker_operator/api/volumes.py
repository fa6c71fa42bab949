"""``spec.pod.volumes`` and ``volumeMounts``: kinds that the restricted standard allows, beside our own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stoker_operator.api.schema import ApiModel, Quantity, checked, rules

# What the operator's own pods have, or the runtime image: nothing may stand in its place.
OWN_VOLUMES = ("model", "cache", "tmp", "shm", "ca-bundle")
OWN_PATHS = ("/model", "/cache", "/tmp", "/dev/shm", "/etc/stoker", "/opt/stoker")  # noqa: S108  in the pod

_RELATIVE = "!self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')"
_IS_OWN = "self == own || self.startsWith(own + '/') || own.startsWith(self + '/')"

ObjectName = Annotated[str, Field(min_length=1, max_length=253)]


class KeyToPath(ApiModel):
    """A key that becomes a file."""

    key: Annotated[str, Field(min_length=1, max_length=253, description="Key of the ConfigMap or Secret.")]
    path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=512,
            description="File, relative to the mount.",
            json_schema_extra=rules(
                (_RELATIVE, "spec.pod.volumes items must have relative paths without '..', such as ca.crt")
            ),
        ),
    ]


_ITEMS = Annotated[
    list[KeyToPath] | None,
    Field(max_length=64, description="Which keys, and as which files; all by default."),
]
_OPTIONAL = Annotated[bool | None, Field(description="Whether pods start also where it does not exist.")]


class ConfigMapVolume(ApiModel):
    """A ConfigMap in the same namespace, as files."""

    name: Annotated[ObjectName, Field(description="Name of the ConfigMap.")]
    items: _ITEMS = None
    optional: _OPTIONAL = None


class SecretVolume(ApiModel):
    """A Secret in the same namespace, as files."""

    secret_name: Annotated[ObjectName, Field(description="Name of the Secret.")]
    items: _ITEMS = None
    optional: _OPTIONAL = None


class ClaimVolume(ApiModel):
    """A PersistentVolumeClaim in the same namespace."""

    claim_name: Annotated[ObjectName, Field(description="Name of the PersistentVolumeClaim.")]
    read_only: Annotated[bool | None, Field(description="Whether nothing may write to it.")] = None


class EmptyDirVolume(ApiModel):
    """A folder that lives as long as the pod."""

    medium: Annotated[
        Literal["Memory"] | None, Field(description="Memory keeps it there; the node's disk by default.")
    ] = None
    size_limit: Annotated[
        Quantity | None, Field(description="Most that it may hold, as a quantity such as 1Gi.")
    ] = None


class ImageVolume(ApiModel):
    """The files of an image, read-only."""

    reference: Annotated[
        str,
        Field(min_length=1, max_length=1024, description="The image, such as registry.example/adapters:1."),
    ]
    pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"] | None, Field(description="When the image is pulled.")
    ] = None


_KINDS = ("configMap", "secret", "persistentVolumeClaim", "emptyDir", "image")


class Volume(ApiModel):
    """A volume of the pods, of one kind."""

    model_config = checked(
        (
            f"{' + '.join(f'(has(self.{kind}) ? 1 : 0)' for kind in _KINDS)} == 1",
            f"spec.pod.volumes entries must have exactly one of {', '.join(_KINDS)}",
        )
    )

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=63,
            description="Name of the volume.",
            json_schema_extra=rules(
                (
                    "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                    "spec.pod.volumes names must be lower-case letters, digits and dashes",
                ),
                (
                    f"!(self in {list(OWN_VOLUMES)}) && !self.startsWith('stoker-')",
                    f"spec.pod.volumes names must not be {', '.join(OWN_VOLUMES)} or begin with stoker-, "
                    "which belong to the operator: choose another name",
                ),
            ),
        ),
    ]
    config_map: Annotated[
        ConfigMapVolume | None, Field(description="A ConfigMap in the same namespace, as files.")
    ] = None
    secret: Annotated[SecretVolume | None, Field(description="A Secret in the same namespace, as files.")] = (
        None
    )
    persistent_volume_claim: Annotated[
        ClaimVolume | None, Field(description="A PersistentVolumeClaim in the same namespace.")
    ] = None
    empty_dir: Annotated[
        EmptyDirVolume | None, Field(description="A folder that lives as long as the pod.")
    ] = None
    image: Annotated[ImageVolume | None, Field(description="The files of an image, read-only.")] = None


class VolumeMount(ApiModel):
    """Where the containers have a volume."""

    name: Annotated[
        str, Field(min_length=1, max_length=63, description="Name of a volume of spec.pod.volumes.")
    ]
    mount_path: Annotated[
        str,
        Field(
            min_length=2,
            max_length=512,
            description="Folder in the containers.",
            json_schema_extra=rules(
                (
                    "self.matches('^(/[^/:]+)+$') && !self.matches('/[.][.]?(/|$)')",
                    "spec.pod.volumeMounts paths must be absolute, without ':', '.', '..' and a slash at the "
                    "end, for example /etc/team",
                ),
                (
                    f"!{list(OWN_PATHS)}.exists(own, {_IS_OWN})",
                    f"spec.pod.volumeMounts paths must neither hide nor lie in {', '.join(OWN_PATHS)}, "
                    "which the engine needs: choose another path",
                ),
            ),
        ),
    ]
    sub_path: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=512,
            description="Folder or file of the volume; all of it by default.",
            json_schema_extra=rules(
                (
                    _RELATIVE,
                    "spec.pod.volumeMounts subPath must be relative, without '..', such as team-a/certs",
                )
            ),
        ),
    ] = None
    read_only: Annotated[bool | None, Field(description="Whether the containers may only read it.")] = None
