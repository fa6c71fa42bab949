"""``spec.model`` of a ModelDeployment: which model, where its files are, and how they get to a pod."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stoker_operator.api.podspec import FetchResources
from stoker_operator.api.schema import ApiModel, checked, rules

_SOURCE_RULES = rules(
    (
        "self.matches('^(hf|s3|pvc|oci|file)://.+$')",
        "spec.model.source must begin with hf://, s3://, pvc://, oci:// or file://, for example "
        "hf://Qwen/Qwen3-8B@main",
    ),
    (
        "!self.startsWith('hf://') || "
        "self.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._/-]+[.]gguf)?(@[A-Za-z0-9][A-Za-z0-9._/-]*)?$')",
        "spec.model.source with hf:// must be hf://OWNER/NAME, with /FILE.gguf or @REVISION after it",
    ),
    (
        "!self.startsWith('s3://') || self.matches('^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/]+)*/?$')",
        "spec.model.source with s3:// must be s3://BUCKET/FOLDER or s3://BUCKET/FOLDER/FILE.gguf",
    ),
    (
        "!self.startsWith('pvc://') || self.matches('^pvc://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/[^/]+)*/?$')",
        "spec.model.source with pvc:// must be pvc://CLAIM or pvc://CLAIM/PATH",
    ),
    (
        "!self.startsWith('oci://') || self.matches('^oci://[a-z0-9][A-Za-z0-9._:/@-]*$')",
        "spec.model.source with oci:// must be an image reference, for example oci://registry.example/models/qwen3:1",
    ),
    (
        "!self.startsWith('file://') || self.matches('^file:///.+$')",
        "spec.model.source with file:// must hold an absolute path, for example file:///models/qwen3",
    ),
    (
        "!self.contains('/../') && !self.endsWith('/..')",
        "spec.model.source must not contain '..': give the path itself",
    ),
)


class Cache(ApiModel):
    """Where a downloaded model is kept."""

    claim_name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            description="PersistentVolumeClaim that keeps downloads across pods; it must allow as many "
            "writers as there are pods on different nodes.",
        ),
    ]


class Fetch(ApiModel):
    """The init container that downloads the model."""

    resources: Annotated[
        FetchResources | None,
        Field(
            description="CPU, memory and disk of the download, in place of those of spec.pod.resources, "
            "which it has otherwise."
        ),
    ] = None


class Model(ApiModel):
    """Which model is served, and under which name."""

    model_config = checked(
        (
            "!has(self.secretName) || self.source.matches('^(hf|s3)://')",
            "spec.model.secretName is only used with hf:// and s3:// sources: remove it",
        ),
        (
            "!has(self.cache) || self.source.matches('^(hf|s3)://')",
            "spec.model.cache is only used with hf:// and s3:// sources: remove it",
        ),
        (
            "!has(self.fetch) || self.source.matches('^(hf|s3)://')",
            "spec.model.fetch is only used with hf:// and s3:// sources: remove it",
        ),
    )

    source: Annotated[
        str,
        Field(
            min_length=6,
            max_length=512,
            description="Where the weights are. hf://OWNER/NAME[@REVISION] is downloaded from a hub, "
            "s3://BUCKET/FOLDER from a bucket that speaks S3; "
            "oci://IMAGE mounts an image as a volume; pvc://CLAIM[/PATH] mounts a claim read-only; "
            "file:///PATH mounts a folder of the node and needs the operator's permission. "
            "A folder of safetensors files and a GGUF file both load.",
            json_schema_extra=_SOURCE_RULES,
        ),
    ]
    served_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=253,
            description="Name that clients put in the `model` field. The ModelDeployment's name by default.",
        ),
    ] = None
    secret_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=253,
            description="Secret in the same namespace with what a download needs. hf://: its key `token` is "
            "the hub's access token. s3://: its keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are the "
            "bucket's, and AWS_SESSION_TOKEN where there is one.",
        ),
    ] = None
    cache: Annotated[
        Cache | None,
        Field(description="Keeps downloads across pods. Without it every pod downloads its own copy."),
    ] = None
    fetch: Annotated[Fetch | None, Field(description="How the init container downloads the model.")] = None
