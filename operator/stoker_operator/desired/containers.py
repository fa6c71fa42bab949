"""The containers of a pod: what a profile asks for, with what the ModelDeployment and the operator give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stoker_operator.api import ModelDeployment, labels
from stoker_operator.api.podspec import FETCH_RESOURCES
from stoker_operator.config import OperatorConfig
from stoker_operator.desired.source import CACHE_DIR, credentials
from stoker_operator.profiles import TMP, EngineContainer, Probe, Scratch, fetch_args

_CA_VOLUME = "ca-bundle"
_CA_FILE = "ca.crt"
_CA_DIR = "/etc/stoker/ca"
# What a download writes to beside the model's volume.
FETCH_SCRATCH = (TMP,)


def engine_container(
    model: ModelDeployment, config: OperatorConfig, engine: EngineContainer, mount: dict[str, Any]
) -> dict[str, Any]:
    """Return the container that serves.

    Args:
        model: whose it is.
        config: the operator's settings.
        engine: what its profile asks for.
        mount: of its model.
    """
    container: dict[str, Any] = {**_image(model, config), "name": labels.ENGINE_CONTAINER}
    if engine.command:
        container["command"] = list(engine.command)
    container |= {
        "args": list(engine.args),
        "env": _env(model, config.pod_defaults.env, engine.env),
        "ports": [
            {"name": name, "containerPort": number, "protocol": "TCP"}
            for name, number in engine.ports.items()
        ],
        "startupProbe": _probe(engine.startup),
        "readinessProbe": _probe(engine.readiness),
        "livenessProbe": _probe(engine.liveness),
        "volumeMounts": [mount, *map(_scratch_mount, engine.scratch), *_user_mounts(model)],
        **_hardening(engine.has_writable_root),
    }
    resources = _resources(model)
    return {**container, "resources": resources} if resources else container


def fetch_container(model: ModelDeployment, config: OperatorConfig, mount: dict[str, Any]) -> dict[str, Any]:
    """Return the init container that downloads a model; nothing in it depends on the engine.

    Args:
        model: whose it is.
        config: the operator's settings.
        mount: of the volume that it downloads to.
    """
    own = [{"name": "HF_HOME", "value": CACHE_DIR}, *credentials(model)]
    defaults = dict(config.pod_defaults.env)
    mounts = [mount, *map(_scratch_mount, FETCH_SCRATCH)]
    if config.pod_defaults.ca_bundle is not None:
        # Read by all that downloads: Python's ssl, and the Rust libraries that move large files.
        defaults["SSL_CERT_FILE"] = f"{_CA_DIR}/{_CA_FILE}"
        mounts.append({"name": _CA_VOLUME, "mountPath": _CA_DIR, "readOnly": True})
    container = {
        **_fetch_image(model, config),
        "name": labels.FETCH_CONTAINER,
        "args": fetch_args(model, CACHE_DIR),
        "env": _env(model, defaults, own),
        "volumeMounts": [*mounts, *_user_mounts(model)],
        **_hardening(),
    }
    resources = _fetch_resources(model)
    return {**container, "resources": resources} if resources else container


def ca_volumes(config: OperatorConfig) -> list[dict[str, Any]]:
    """Return the volume of the certificates that downloads trust, if the operator has some.

    Not an optional one: a pod that is made before the ConfigMap reaches its namespace waits for it, and the
    kubelet says what it waits for; an optional one would let the download start and fail.
    """
    bundle = config.pod_defaults.ca_bundle
    if bundle is None:
        return []
    items = [{"key": bundle.key, "path": _CA_FILE}]
    return [{"name": _CA_VOLUME, "configMap": {"name": bundle.config_map, "items": items}}]


def _env(
    model: ModelDeployment, defaults: Mapping[str, str], own: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the operator's defaults, the user's variables and those that we have to set; later ones win."""
    variables = [
        *({"name": name, "value": value} for name, value in defaults.items()),
        *(variable.manifest() for variable in model.spec.pod.env or ()),
        *own,
    ]
    last = {variable["name"]: number for number, variable in enumerate(variables)}
    return [variable for number, variable in enumerate(variables) if last[variable["name"]] == number]


def _fetch_image(model: ModelDeployment, config: OperatorConfig) -> dict[str, Any]:
    """Return what downloads: an engine's image need not be able to."""
    policy = model.spec.pod.image_pull_policy or config.pod_defaults.image_pull_policy
    image = {"image": config.runtime_image}
    return image if policy is None else {**image, "imagePullPolicy": policy}


def _image(model: ModelDeployment, config: OperatorConfig) -> dict[str, Any]:
    pod = model.spec.pod
    policy = pod.image_pull_policy or (None if pod.image else config.pod_defaults.image_pull_policy)
    image = {"image": pod.image or config.runtime_image}
    return image if policy is None else {**image, "imagePullPolicy": policy}


def _scratch_mount(scratch: Scratch) -> dict[str, Any]:
    return {"name": scratch.name, "mountPath": scratch.path}


def _user_mounts(model: ModelDeployment) -> list[dict[str, Any]]:
    return [mount.manifest() for mount in model.spec.pod.volume_mounts or ()]


def _hardening(has_writable_root: bool = False) -> dict[str, Any]:
    return {
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": not has_writable_root,
        },
    }


def _probe(probe: Probe) -> dict[str, Any]:
    return {
        "httpGet": {"path": probe.path, "port": labels.HTTP_PORT},
        "periodSeconds": probe.period_s,
        "failureThreshold": probe.failure_threshold,
        "timeoutSeconds": probe.timeout_s,
    }


def _resources(model: ModelDeployment) -> dict[str, Any]:
    accelerator, resources = model.spec.accelerator, model.spec.pod.resources
    requests = dict(resources.requests or {}) if resources else {}
    limits = dict(resources.limits or {}) if resources else {}
    if accelerator.per_pod:
        requests[accelerator.resource] = limits[accelerator.resource] = str(accelerator.per_pod)
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _fetch_resources(model: ModelDeployment) -> dict[str, Any]:
    """Return what the download may use: the engine's CPU, memory and disk, unless the spec says otherwise.

    It ends before the engine starts, and a pod reserves the larger of the two: this costs nothing. With none
    at all, a quota that counts limits would refuse the pod, and no pod could be of the Guaranteed class.
    """
    fetch, engine = model.spec.model.fetch, model.spec.pod.resources
    asked = engine if fetch is None or fetch.resources is None else fetch.resources
    if asked is None:
        return {}
    kinds = {"requests": asked.requests or {}, "limits": asked.limits or {}}
    own = {
        kind: {name: amounts[name] for name in FETCH_RESOURCES if name in amounts}
        for kind, amounts in kinds.items()
    }
    return {kind: amounts for kind, amounts in own.items() if amounts}
