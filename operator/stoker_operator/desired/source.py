"""How each kind of model source reaches the engine's container: volumes, mounts, perhaps a download first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stoker_operator.api import InvalidSpec, ModelDeployment
from stoker_operator.config import OperatorConfig
from stoker_operator.profiles import MountedModel

MODEL_DIR = "/model"
CACHE_DIR = "/cache"
# Names of the volumes, one of which every pod has.
MODEL_VOLUME = "model"
CACHE_VOLUME = "cache"

# Variables that a download has from the Secret of its model, each with its key and whether it may be missing.
_CREDENTIALS = {
    "hf": (("HF_TOKEN", "token", False),),
    "s3": (
        ("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID", False),
        ("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", False),
        ("AWS_SESSION_TOKEN", "AWS_SESSION_TOKEN", True),
    ),
}


@dataclass(frozen=True, slots=True)
class ModelVolume:
    """How a model gets into the pod.

    Args:
        mounted: the model as the engine's container finds it.
        volume: the volume that holds it.
        mount: the containers' mount of it.
    """

    mounted: MountedModel
    volume: dict[str, Any]
    mount: dict[str, Any]


def model_volume(model: ModelDeployment, config: OperatorConfig) -> ModelVolume:
    """Return how the model reaches the pod.

    Raises:
        InvalidSpec: the operator does not allow this source.
    """
    scheme, _, rest = model.spec.model.source.partition("://")
    if scheme in ("hf", "s3"):
        return _fetched(model)
    mount = {"name": MODEL_VOLUME, "mountPath": MODEL_DIR, "readOnly": True}
    if scheme == "oci":
        volume = {"name": MODEL_VOLUME, "image": {"reference": rest, "pullPolicy": "IfNotPresent"}}
        return ModelVolume(MountedModel(MODEL_DIR), volume, mount)
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        volume = {"name": MODEL_VOLUME, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        return ModelVolume(MountedModel(f"{MODEL_DIR}/{path}".rstrip("/")), volume, mount)
    if scheme == "file":
        if not config.allow_file_sources:
            raise InvalidSpec(
                "spec.model.source",
                "file:// is not allowed here, because it reads a folder of the node: use hf://, s3://, "
                "pvc:// or oci://, or install the operator with allowFileSources=true",
            )
        # A .gguf file is mounted with its folder, so that one kind of volume serves both.
        folder, name = rest.rsplit("/", 1) if rest.endswith(".gguf") else (rest, "")
        volume = {"name": MODEL_VOLUME, "hostPath": {"path": folder or "/", "type": "Directory"}}
        return ModelVolume(MountedModel(f"{MODEL_DIR}/{name}".rstrip("/")), volume, mount)
    raise InvalidSpec("spec.model.source", "must begin with hf://, s3://, pvc://, oci:// or file://")


def _fetched(model: ModelDeployment) -> ModelVolume:
    cache = model.spec.model.cache
    volume: dict[str, Any] = {"name": CACHE_VOLUME}
    if cache is None:
        volume["emptyDir"] = {}
    else:
        volume["persistentVolumeClaim"] = {"claimName": cache.claim_name}
    mount = {"name": CACHE_VOLUME, "mountPath": CACHE_DIR}
    return ModelVolume(MountedModel(model.spec.model.source, CACHE_DIR), volume, mount)


def credentials(model: ModelDeployment) -> list[dict[str, Any]]:
    """Return the variables of a download that come from the model's Secret, if it names one."""
    secret, (scheme, _, _) = model.spec.model.secret_name, model.spec.model.source.partition("://")
    if secret is None:
        return []
    variables = []
    for name, key, is_optional in _CREDENTIALS[scheme]:
        reference = {"name": secret, "key": key, **({"optional": True} if is_optional else {})}
        variables.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return variables
