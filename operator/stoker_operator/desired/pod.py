"""The pod of one replica: an engine's container with its model, as whom it runs, and where."""

from __future__ import annotations

from typing import Any

from stoker_operator.api import ModelDeployment, labels
from stoker_operator.config import OperatorConfig
from stoker_operator.desired.containers import FETCH_SCRATCH, ca_volumes, engine_container, fetch_container
from stoker_operator.desired.metadata import common_labels, owner_reference
from stoker_operator.desired.revision import revision_of
from stoker_operator.desired.source import model_volume
from stoker_operator.profiles import EngineContainer, EngineProfile, Scratch


def pod_template(model: ModelDeployment, config: OperatorConfig, profile: EngineProfile) -> dict[str, Any]:
    """Return a pod of the current revision but for what its name and revision add.

    Args:
        model: whose it is.
        config: the operator's settings.
        profile: of the engine in it.

    Raises:
        InvalidSpec: the operator does not allow the model's source.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": model.namespace,
            "labels": {
                **(model.spec.pod.labels or {}),
                **common_labels(model.name),
                labels.ENGINE_PROFILE: profile.name,
            },
            "annotations": dict(model.spec.pod.annotations or {}),
            "ownerReferences": [owner_reference(model)],
        },
        "spec": _pod_spec(model, config, profile),
    }


def _pod_spec(model: ModelDeployment, config: OperatorConfig, profile: EngineProfile) -> dict[str, Any]:
    source = model_volume(model, config)
    engine = profile.container(model, source.mounted)
    is_fetched = source.mounted.cache_dir is not None
    # What both containers write to is one volume.
    scratch = dict.fromkeys((*engine.scratch, *(FETCH_SCRATCH if is_fetched else ())))
    pod_spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": model.spec.pod.termination_grace_period_seconds,
        "securityContext": _identity(model, config, engine),
        "containers": [engine_container(model, config, engine, source.mount)],
        "volumes": [
            source.volume,
            *map(_scratch_volume, scratch),
            *(volume.manifest() for volume in model.spec.pod.volumes or ()),
        ],
    }
    if is_fetched:
        pod_spec["initContainers"] = [fetch_container(model, config, source.mount)]
        pod_spec["volumes"] += ca_volumes(config)
    return pod_spec | _placement(model, config)


def _identity(model: ModelDeployment, config: OperatorConfig, engine: EngineContainer) -> dict[str, Any]:
    """Return who the containers run as; the images name a user of their own where nobody gives one."""
    ids = {"runAsUser": engine.user_id, "runAsGroup": engine.group_id, "fsGroup": engine.group_id}
    asked = model.spec.pod.security_context
    return {
        "runAsNonRoot": True,
        **({} if config.pod_defaults.has_assigned_user else ids),
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
        **({} if asked is None else asked.manifest()),
    }


def _scratch_volume(scratch: Scratch) -> dict[str, Any]:
    return {"name": scratch.name, "emptyDir": {"medium": scratch.medium} if scratch.medium else {}}


def _placement(model: ModelDeployment, config: OperatorConfig) -> dict[str, Any]:
    scheduling, pod = model.spec.scheduling, model.spec.pod
    own_secrets = (secret.name for secret in pod.image_pull_secrets or ())
    # All are tried, so that a model's own registry and the default image's may be different ones.
    secrets = dict.fromkeys([*own_secrets, *config.pod_defaults.image_pull_secrets])
    wanted = {
        "nodeSelector": scheduling.node_selector,
        "tolerations": [toleration.manifest() for toleration in scheduling.tolerations or ()],
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
        constraints.append({"labelSelector": {"matchLabels": selector}, **asked.manifest()})
    return constraints
