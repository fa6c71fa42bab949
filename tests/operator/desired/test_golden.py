"""What each kind of ModelDeployment becomes, as files a person can read; `make golden` rewrites them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from operator_builders import make_model

from stoker_operator.api import parse
from stoker_operator.config import CaBundle, OperatorConfig, PodDefaults
from stoker_operator.desired import desired
from stoker_operator.desired.pod import named_pod

GOLDEN = Path(__file__).parent.parent / "golden"
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
    "image": {"model": {"source": "oci://registry.example/smollm2:1", "servedName": "smol"}},
    "claim": {"model": {"source": "pvc://models/qwen3/8b"}},
    "node-folder": {"model": {"source": "file:///srv/models/qwen3.gguf"}},
    "suspended": {"suspend": True},
    "air-gapped": {"model": {"source": "hf://Qwen/Qwen3-8B"}},
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


class Dumper(yaml.SafeDumper):
    """Writes what stands twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def manifests(spec: dict[str, Any], config: OperatorConfig = CONFIG) -> list[dict[str, Any]]:
    wanted = desired(parse(make_model(**spec)), config)
    pod = named_pod(wanted.pod, f"{wanted.model.name}-{wanted.revision}-0", wanted.revision)
    budget = wanted.budget()
    return [pod, wanted.service, *([budget] if budget else [])]


@pytest.mark.parametrize("name", CASES)
def test_children_are_as_the_golden_file_says(name: str) -> None:
    found = manifests(CASES[name], CONFIGS.get(name, CONFIG))
    text = yaml.dump_all(found, Dumper=Dumper, sort_keys=False, width=110)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("STOKER_WRITE_GOLDEN"):
        file.write_text(text)
    assert file.read_text() == text, "if the change is meant, run `make golden` and look at the diff"


def test_runtime_class_reaches_the_pod() -> None:
    assert manifests({"pod": {"runtimeClassName": "nvidia"}})[0]["spec"]["runtimeClassName"] == "nvidia"


def test_every_golden_file_has_its_case() -> None:
    assert {file.stem for file in GOLDEN.glob("*.yaml")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_children_fit_the_schema_of_kubernetes(name: str) -> None:
    for manifest in manifests(CASES[name], CONFIGS.get(name, CONFIG)):
        kubernetes_validate.validate(manifest, "1.37", strict=True)
