"""The pod of one replica: the engine's container, hardened, with its model mounted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stoker_operator.api import ModelDeployment, labels
from stoker_operator.api.podspec import FETCH_RESOURCES
from stoker_operator.api.schema import ApiModel
from stoker_operator.config import OperatorConfig
from stoker_operator.desired.metadata import common_labels, owner_reference
from stoker_operator.desired.revision import revision_of
from stoker_operator.desired.source import CACHE_DIR, MountedModel, credentials, mounted_model
from stoker_operator.profiles import EngineProfile, profile_of

USER_ID = 10001
SHARED_MEMORY = "/dev/shm"  # noqa: S108  a mount point inside the pod
SCRATCH = "/tmp"  # noqa: S108  a mount point inside the pod
CA_DIR = "/etc/stoker/ca"
CA_FILE = "ca.crt"

# Loading may take long: weights of hundreds of GB come from a network disk. A day, then the kubelet restarts.
_STARTUP_PROBE = {"periodSeconds": 1, "failureThreshold": 86_400, "timeoutSeconds": 2}
_READINESS_PROBE = {"periodSeconds": 2, "failureThreshold": 2, "timeoutSeconds": 2}
_LIVENESS_PROBE = {"periodSeconds": 10, "failureThreshold": 3, "timeoutSeconds": 5}


def pod_template(model: ModelDeployment, config: OperatorConfig) -> dict[str, Any]:
    """Return a pod of the current revision but for what its name and revision add.

    Raises:
        InvalidSpec: the operator does not allow the model's source.
    """
    spec, profile = model.spec, profile_of(model.spec)
    mounted = mounted_model(model, config)
    container = _engine_container(model, config, profile, mounted)
    pod_spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": spec.pod.termination_grace_period_seconds,
        "securityContext": _identity(model, config),
        "containers": [container],
        "volumes": [
            mounted.volume,
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            *map(_plain, spec.pod.volumes or ()),
        ],
    }
    if mounted.is_fetched:
        pod_spec["initContainers"] = [_fetch_container(model, config, profile, mounted)]
        pod_spec["volumes"] += _ca_volume(config)
    pod_spec |= _placement(model, config)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": model.namespace,
            "labels": {
                **(spec.pod.labels or {}),
                **common_labels(model.name),
                labels.ENGINE_PROFILE: profile.name,
            },
            "annotations": dict(spec.pod.annotations or {}),
            "ownerReferences": [owner_reference(model)],
        },
        "spec": pod_spec,
    }


def _engine_container(
    model: ModelDeployment, config: OperatorConfig, profile: EngineProfile, mounted: MountedModel
) -> dict[str, Any]:
    own: list[dict[str, Any]] = []
    if mounted.is_fetched:
        # The init container has it; nothing may depend on where it came from once it is there.
        own += [{"name": "HF_HOME", "value": CACHE_DIR}, {"name": "HF_HUB_OFFLINE", "value": "1"}]
    if profile.drain is not None:
        # A variable and not an argument: an older engine ignores it, and would not start with a new flag.
        uid = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}}
        own.append({"name": profile.drain.key_variable, "valueFrom": uid})
    container: dict[str, Any] = {
        **_image(model, config),
        "name": labels.ENGINE_CONTAINER,
        "args": profile.serve_args(model, mounted.path),
        "env": _env(model, config.pod_defaults.env, own),
        "ports": [{"name": labels.HTTP_PORT, "containerPort": profile.port, "protocol": "TCP"}],
        "startupProbe": _probe(profile.ready_path, _STARTUP_PROBE),
        "readinessProbe": _probe(profile.ready_path, _READINESS_PROBE),
        "livenessProbe": _probe(profile.live_path, _LIVENESS_PROBE),
        "volumeMounts": [mounted.mount, *_scratch_mounts(), *map(_plain, model.spec.pod.volume_mounts or ())],
        **_hardening(),
    }
    resources = _resources(model)
    if resources:
        container["resources"] = resources
    return container


def _fetch_container(
    model: ModelDeployment, config: OperatorConfig, profile: EngineProfile, mounted: MountedModel
) -> dict[str, Any]:
    own = [{"name": "HF_HOME", "value": CACHE_DIR}, *credentials(model)]
    defaults = dict(config.pod_defaults.env)
    mounts = [mounted.mount, {"name": "tmp", "mountPath": SCRATCH}]
    if config.pod_defaults.ca_bundle is not None:
        # Read by all that downloads: Python's ssl, and the Rust libraries that move large files.
        defaults["SSL_CERT_FILE"] = f"{CA_DIR}/{CA_FILE}"
        mounts.append({"name": "ca-bundle", "mountPath": CA_DIR, "readOnly": True})
    container = {
        **_fetch_image(model, config),
        "name": labels.FETCH_CONTAINER,
        "args": profile.fetch_args(model, CACHE_DIR),
        "env": _env(model, defaults, own),
        "volumeMounts": [*mounts, *map(_plain, model.spec.pod.volume_mounts or ())],
        **_hardening(),
    }
    resources = _fetch_resources(model)
    if resources:
        container["resources"] = resources
    return container


def _env(
    model: ModelDeployment, defaults: Mapping[str, str], own: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the operator's defaults, the user's variables and those that we have to set; later ones win."""
    variables = [
        *({"name": name, "value": value} for name, value in defaults.items()),
        *(_plain(variable) for variable in model.spec.pod.env or ()),
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


def _identity(model: ModelDeployment, config: OperatorConfig) -> dict[str, Any]:
    """Return who the containers run as; the images name a user of their own where nobody gives one."""
    ids = {"runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID}
    asked = model.spec.pod.security_context
    return {
        "runAsNonRoot": True,
        **({} if config.pod_defaults.has_assigned_user else ids),
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
        **({} if asked is None else _plain(asked)),
    }


def _ca_volume(config: OperatorConfig) -> list[dict[str, Any]]:
    """Return the volume of the certificates.

    Not an optional one: a pod that is made before the ConfigMap reaches its namespace waits for it, and the
    kubelet says what it waits for; an optional one would let the download start and fail.
    """
    bundle = config.pod_defaults.ca_bundle
    if bundle is None:
        return []
    items = [{"key": bundle.key, "path": CA_FILE}]
    return [{"name": "ca-bundle", "configMap": {"name": bundle.config_map, "items": items}}]


def _hardening() -> dict[str, Any]:
    return {
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }


def _scratch_mounts() -> list[dict[str, Any]]:
    return [{"name": "tmp", "mountPath": SCRATCH}, {"name": "shm", "mountPath": SHARED_MEMORY}]


def _probe(path: str, timing: dict[str, int]) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": labels.HTTP_PORT}, **timing}


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


def _placement(model: ModelDeployment, config: OperatorConfig) -> dict[str, Any]:
    scheduling, pod = model.spec.scheduling, model.spec.pod
    own_secrets = (secret.name for secret in pod.image_pull_secrets or ())
    # All are tried, so that a model's own registry and the default image's may be different ones.
    secrets = dict.fromkeys([*own_secrets, *config.pod_defaults.image_pull_secrets])
    wanted = {
        "nodeSelector": scheduling.node_selector,
        "tolerations": [_plain(toleration) for toleration in scheduling.tolerations or ()],
        "affinity": scheduling.affinity,
        "topologySpreadConstraints": _spread(model),
        "priorityClassName": scheduling.priority_class_name,
        "schedulerName": scheduling.scheduler_name,
        "runtimeClassName": pod.runtime_class_name,
        "serviceAccountName": pod.service_account_name,
        "imagePullSecrets": [{"name": name} for name in secrets],
    }
    return {key: value for key, value in wanted.items() if value}


def _spread(model: ModelDeployment) -> list[dict[str, Any]]:
    """Return how replicas spread; where nothing says which pods count, those of the same revision do.

    Pods of an older one would push the new ones away from where they are themselves about to leave.
    """
    constraints = []
    for asked in model.spec.scheduling.topology_spread_constraints or ():
        selector = labels.leader_selector(model.name)
        if not asked.match_label_keys:
            selector[labels.REVISION] = revision_of(model)
        constraints.append({"labelSelector": {"matchLabels": selector}, **_plain(asked)})
    return constraints


def _plain(value: ApiModel) -> dict[str, Any]:
    return value.model_dump(by_alias=True, exclude_none=True)
