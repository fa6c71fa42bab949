"""``spec`` of a ModelDeployment. Descriptions become `kubectl explain`, defaults the CRD's defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stoker_operator.api.availability import PodDisruptionBudget, Rollout
from stoker_operator.api.model import Model
from stoker_operator.api.podspec import Pod
from stoker_operator.api.scheduling import Scheduling
from stoker_operator.api.schema import ApiModel, StringMap, checked, no_own_keys, rules


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
