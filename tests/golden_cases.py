"""Kinds of ModelDeployment, each with a golden manifest and a recorded revision."""

from __future__ import annotations

from typing import Any

from stoker_operator.config import CaBundle, OperatorConfig, PodDefaults

CONFIG = OperatorConfig(runtime_image="registry.example/stoker-runtime:1", allow_file_sources=True)
# Of a cluster behind a proxy, with a registry, a hub and a certificate authority of its own.
AIR_GAPPED = OperatorConfig(
    runtime_image="registry.example/stoker-runtime:1",
    pod_defaults=PodDefaults(
        image_pull_policy="Always",
        image_pull_secrets=("pull",),
        env={"HF_ENDPOINT": "https://hub.example", "NO_PROXY": ".svc"},
        ca_bundle=CaBundle(config_map="trusted", key="bundle.pem"),
        has_assigned_user=True,
    ),
)
CONFIGS = {"air-gapped": AIR_GAPPED}

CASES: dict[str, dict[str, Any]] = {
    "hub": {"model": {"source": "hf://Qwen/Qwen3-8B@main", "secretName": "hf-token"}, "accelerator": {}},
    "hub-with-cache": {
        "model": {"source": "hf://Qwen/Qwen3-8B", "cache": {"claimName": "models"}},
        "accelerator": {"resource": "amd.com/gpu", "perPod": 1},
        "replicas": 3,
        "rollout": {"maxSurge": "50%", "maxUnavailable": 1},
    },
    "s3": {
        "model": {
            "source": "s3://models/qwen3/8b",
            "secretName": "bucket",
            "cache": {"claimName": "models"},
            "fetch": {"resources": {"limits": {"cpu": 2, "memory": "2Gi"}}},
        },
        "pod": {
            "env": [
                {"name": "AWS_REGION", "value": "eu-west-1"},
                {"name": "AWS_ENDPOINT_URL", "value": "https://s3.example"},
            ],
            "serviceAccountName": "models",
        },
    },
    "image": {"model": {"source": "oci://registry.example/smollm2:1", "servedName": "smol"}},
    "claim": {"model": {"source": "pvc://models/qwen3/8b"}},
    "node-folder": {"model": {"source": "file:///srv/models/qwen3.gguf"}},
    "suspended": {"suspend": True},
    "evictable": {"replicas": 2, "podDisruptionBudget": {"maxUnavailable": 1}},
    "air-gapped": {"model": {"source": "hf://Qwen/Qwen3-8B"}},
    "guaranteed": {
        "model": {
            "source": "hf://Qwen/Qwen3-8B",
            "fetch": {"resources": {"limits": {"cpu": 2, "memory": "8Gi"}}},
        },
        "pod": {"resources": {"limits": {"cpu": 8, "memory": "32Gi"}}},
    },
    "platform": {
        "model": {"source": "hf://Qwen/Qwen3-8B"},
        "scheduling": {
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "DoNotSchedule",
                    "minDomains": 2,
                },
                {
                    "maxSkew": 2,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"team": "search"}},
                },
            ]
        },
        "pod": {
            "labels": {"team": "search"},
            "serviceAccountName": "default",
            "securityContext": {"runAsUser": 2000, "fsGroup": 3000, "supplementalGroups": [4000]},
            "volumes": [
                {
                    "name": "trust",
                    "configMap": {"name": "trusted", "items": [{"key": "ca", "path": "ca.crt"}]},
                },
                {"name": "netrc", "secret": {"secretName": "netrc", "optional": True}},
                {"name": "adapters", "persistentVolumeClaim": {"claimName": "adapters", "readOnly": True}},
                {"name": "scratch", "emptyDir": {"sizeLimit": "10Gi"}},
                {"name": "plugins", "image": {"reference": "registry.example/plugins:1"}},
            ],
            "volumeMounts": [
                {"name": "trust", "mountPath": "/etc/team/trust", "readOnly": True},
                {"name": "netrc", "mountPath": "/etc/team/netrc", "subPath": "netrc"},
                {"name": "adapters", "mountPath": "/adapters"},
                {"name": "scratch", "mountPath": "/scratch"},
                {"name": "plugins", "mountPath": "/plugins"},
            ],
        },
        "service": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"]},
    },
    # What the other cases leave out: every field stands in one of them.
    "rare-fields": {
        "model": {
            "source": "hf://Qwen/Qwen3-8B",
            "fetch": {"resources": {"requests": {"cpu": "500m", "memory": "2Gi"}}},
        },
        "rollout": {"progressDeadlineSeconds": 7200, "paused": True},
        "scheduling": {
            "tolerations": [
                {
                    "key": "team",
                    "operator": "Equal",
                    "value": "search",
                    "effect": "NoExecute",
                    "tolerationSeconds": 60,
                }
            ],
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "matchLabelKeys": ["stoker.dev/revision"],
                    "nodeAffinityPolicy": "Honor",
                    "nodeTaintsPolicy": "Ignore",
                }
            ],
        },
        "pod": {
            "env": [
                {
                    "name": "STOKER_API_KEY",
                    "valueFrom": {"secretKeyRef": {"name": "keys", "key": "search"}},
                }
            ],
            "runtimeClassName": "nvidia",
            "securityContext": {"runAsGroup": 3000, "fsGroupChangePolicy": "Always"},
            "volumes": [
                {"name": "trust", "configMap": {"name": "trusted", "optional": True}},
                {
                    "name": "netrc",
                    "secret": {"secretName": "netrc", "items": [{"key": "netrc", "path": ".netrc"}]},
                },
                {"name": "fast", "emptyDir": {"medium": "Memory"}},
                {
                    "name": "plugins",
                    "image": {"reference": "registry.example/plugins:1", "pullPolicy": "Always"},
                },
            ],
            "volumeMounts": [{"name": "trust", "mountPath": "/etc/team/trust"}],
        },
        "service": {"drainSeconds": 30},
    },
    "everything": {
        "model": {"source": "hf://Qwen/Qwen3-8B", "servedName": "qwen3"},
        "engine": {
            "dtype": "bfloat16",
            "quantization": "none",
            "kvCacheDtype": "auto",
            "speculative": "ngram",
            "maxModelLen": 8192,
            "maxNumSeqs": 64,
            "maxNumBatchedTokens": 4096,
            "memoryFraction": "0.85",
        },
        "accelerator": {"resource": "nvidia.com/gpu", "perPod": 1},
        "replicas": 2,
        "scheduling": {
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "priorityClassName": "system-cluster-critical",
            "schedulerName": "default-scheduler",
        },
        "pod": {
            "image": "registry.example/own-runtime:2",
            "imagePullPolicy": "Always",
            "resources": {"requests": {"cpu": 4, "memory": "32Gi"}, "limits": {"memory": "64Gi"}},
            "env": [
                {"name": "HF_HOME", "value": "/elsewhere"},
                {"name": "HF_ENDPOINT", "value": "http://hub"},
            ],
            "labels": {"team": "search"},
            "annotations": {"example.com/owner": "search"},
            "imagePullSecrets": [{"name": "registry"}],
            "terminationGracePeriodSeconds": 600,
        },
        "service": {"port": 8080, "type": "LoadBalancer", "annotations": {"example.com/internal": "true"}},
    },
}
