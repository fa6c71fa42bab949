"""``spec`` of a ModelDeployment. Descriptions become `kubectl explain`, defaults the CRD's defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stoker_operator.api.availability import PodDisruptionBudget, Rollout
from stoker_operator.api.podspec import FetchResources, Pod
from stoker_operator.api.scheduling import Scheduling
from stoker_operator.api.schema import ApiModel, StringMap, checked, no_own_keys, rules

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


class Engine(ApiModel):
    """How the engine in each pod runs. What is left out is chosen by the engine for its device."""

    model_config = checked(
        (
            "!has(self.maxNumSeqs) || !has(self.maxNumBatchedTokens) || "
            "self.maxNumBatchedTokens >= self.maxNumSeqs",
            "spec.engine.maxNumBatchedTokens must be at least spec.engine.maxNumSeqs: "
            "a step needs one token for each request",
        )
    )

    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        Field(description="Number format of weights and KV cache; auto follows the device and the model."),
    ] = "auto"
    quantization: Annotated[
        Literal["none", "int8", "fp8", "gguf"] | None,
        Field(
            description="Of the weights, for less memory and a small loss of quality. int8: on CPUs with "
            "AVX512-BF16; gguf: likewise, as a GGUF file has them; fp8: on GPUs; none: as the "
            "checkpoint has them."
        ),
    ] = None
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8"] | None,
        Field(
            description="Number format of keys and values. auto: that of dtype; fp8: on GPUs, twice as many "
            "tokens in the same memory for a small loss of quality."
        ),
    ] = None
    speculative: Annotated[
        Literal["none", "ngram"] | None,
        Field(
            description="How tokens are guessed ahead. ngram: from the request's own text; faster where "
            "answers repeat their prompt, and never another answer."
        ),
    ] = None
    max_model_len: Annotated[
        int | None,
        Field(ge=2, le=16_777_216, description="Most tokens of one request, prompt and output together."),
    ] = None
    max_num_seqs: Annotated[
        int | None, Field(ge=1, le=65_536, description="Most requests computed in one step.")
    ] = None
    max_num_batched_tokens: Annotated[
        int | None, Field(ge=1, le=1_048_576, description="Most tokens computed in one step.")
    ] = None
    memory_fraction: Annotated[
        str | None,
        Field(
            max_length=6,
            description="Share of the device's memory for weights, activations and KV cache, as a string: "
            '"0.90".',
            json_schema_extra=rules(
                (
                    "self.matches('^(0[.][0-9]*[1-9][0-9]*|1([.]0+)?)$')",
                    'spec.engine.memoryFraction must be a string above 0 and at most 1, for example "0.90"',
                )
            ),
        ),
    ] = None


class Accelerator(ApiModel):
    """What each pod asks of the scheduler."""

    resource: Annotated[
        str,
        Field(
            max_length=253,
            description="Extended resource that counts the accelerators of a node.",
            json_schema_extra=rules(
                (
                    "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')",
                    "spec.accelerator.resource must be an extended resource such as nvidia.com/gpu",
                )
            ),
        ),
    ] = "nvidia.com/gpu"
    per_pod: Annotated[
        int, Field(ge=0, le=1, description="Accelerators of each pod. 0 runs the model on the CPU.")
    ] = 1


class Service(ApiModel):
    """The Service that clients call. It has the ModelDeployment's name."""

    model_config = checked(
        (
            "!has(self.ipFamilies) || size(self.ipFamilies) < 2 || !has(self.ipFamilyPolicy) || "
            "self.ipFamilyPolicy != 'SingleStack'",
            "spec.service.ipFamilies must hold one family with ipFamilyPolicy SingleStack: remove one, "
            "or use PreferDualStack or RequireDualStack",
        )
    )

    port: Annotated[int, Field(ge=1, le=65_535, description="Port of the Service.")] = 80
    type: Annotated[
        Literal["ClusterIP", "NodePort", "LoadBalancer"], Field(description="Type of the Service.")
    ] = "ClusterIP"
    annotations: Annotated[
        StringMap | None,
        Field(
            max_length=64,
            description="Annotations of the Service.",
            json_schema_extra=no_own_keys("spec.service.annotations keys"),
        ),
    ] = None
    ip_family_policy: Annotated[
        Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None,
        Field(
            description="Whether the Service has addresses of one family or of two; the cluster's default."
        ),
    ] = None
    ip_families: Annotated[
        list[Literal["IPv4", "IPv6"]] | None,
        Field(
            min_length=1,
            max_length=2,
            description="Families of the Service, the first of which never changes; the cluster's default.",
            json_schema_extra={
                "x-kubernetes-list-type": "atomic",
                **rules(
                    (
                        "size(self) < 2 || self[0] != self[1]",
                        "spec.service.ipFamilies must not name a family twice: remove one",
                    )
                ),
            },
        ),
    ] = None
    drain_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=3600,
            description="Seconds from when a pod leaves the Service until it may be deleted, at the "
            "earliest. Raise it for load balancers that send requests to pods themselves and learn late "
            "which are gone.",
        ),
    ] = 3


class Spec(ApiModel):
    """What is wanted."""

    model_config = checked(
        (
            "!has(self.pod.resources) || !has(self.pod.resources.limits) || "
            "!(self.accelerator.resource in self.pod.resources.limits)",
            "spec.pod.resources.limits must not name the accelerator: set spec.accelerator.perPod instead",
        ),
        (
            "!has(self.pod.resources) || !has(self.pod.resources.requests) || "
            "!(self.accelerator.resource in self.pod.resources.requests)",
            "spec.pod.resources.requests must not name the accelerator: set spec.accelerator.perPod instead",
        ),
        (
            "!has(self.engine.quantization) || self.engine.quantization != 'fp8' || "
            "self.accelerator.perPod > 0",
            "spec.engine.quantization fp8 needs a GPU: set spec.accelerator.perPod, or use int8",
        ),
        (
            "!has(self.engine.kvCacheDtype) || self.engine.kvCacheDtype != 'fp8' || "
            "self.accelerator.perPod > 0",
            "spec.engine.kvCacheDtype fp8 needs a GPU: set spec.accelerator.perPod, or use auto",
        ),
    )

    model: Annotated[Model, Field(description="Which model is served, and under which name.")]
    engine: Annotated[Engine, Field(description="How the engine in each pod runs.")] = Engine()
    accelerator: Annotated[Accelerator, Field(description="What each pod asks of the scheduler.")] = (
        Accelerator()
    )
    replicas: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="Pods that serve at once. Leave it out of manifests when something else scales.",
        ),
    ] = 1
    rollout: Annotated[Rollout, Field(description="How pods are replaced.")] = Rollout()
    pod_disruption_budget: Annotated[
        PodDisruptionBudget,
        Field(description="How many pods evictions may take, as node drains and autoscalers ask for them."),
    ] = PodDisruptionBudget()
    scheduling: Annotated[Scheduling, Field(description="Where pods may run.")] = Scheduling()
    pod: Annotated[Pod, Field(description="Details of the pods.")] = Pod()
    service: Annotated[Service, Field(description="The Service that clients call.")] = Service()
    suspend: Annotated[
        bool, Field(description="Removes all pods, after their requests, and keeps everything else.")
    ] = False
