"""What admission made of a pod: the API server or its webhooks may drop and change fields without a word."""

from __future__ import annotations

from collections.abc import Iterator

from stoker_operator.api import labels
from stoker_operator.desired.source import CACHE_VOLUME, MODEL_VOLUME
from stoker_operator.observed import Manifest
from stoker_operator.profiles import Cause

IMAGE_VOLUMES_OFF = (
    "the API server drops image volumes, which oci:// models are: turn on the feature gate ImageVolume of "
    "the API server and of the kubelets, use Kubernetes 1.35 or later, or do without them (another "
    "spec.model.source; no image in spec.pod.volumes)"
)


_MODEL_VOLUMES = (MODEL_VOLUME, CACHE_VOLUME)


def has_model_volume(pod: Manifest) -> bool:
    """Tell whether a pod of ours has the volume of its model, mounted into the engine's container.

    Every pod has further volumes: a copy that shows none leaves them out, and says nothing.
    """
    volumes = pod["spec"].get("volumes")
    if not volumes:
        return True
    models = [volume["name"] for volume in volumes if volume["name"] in _MODEL_VOLUMES]
    return any(mount["name"] in models for mount in _engine(pod).get("volumeMounts") or ())


def problem(asked: Manifest, created: Manifest) -> Cause | None:
    """Return why a created pod or record is not what was asked for; None when it will do."""
    return unusable(asked, created) if asked["kind"] == "Pod" else unreadable(asked, created)


def unusable(asked: Manifest, created: Manifest) -> Cause | None:
    """Return why a created pod cannot serve as what was asked for; None when it can.

    Without our labels nobody finds it, without the owner reference it is nobody's, without its volume it has
    no model. Left alone, it would be made again under the next name, for ever.
    """
    problem = unfindable(asked, created)
    if problem is not None:
        return problem
    images = {volume["name"] for volume in asked["spec"]["volumes"] if "image" in volume}
    has_model = has_model_volume(created)
    is_image_lost = bool(images - {volume["name"] for volume in created["spec"].get("volumes") or ()})
    if has_model and not is_image_lost:
        return None
    if is_image_lost or MODEL_VOLUME in images:
        return Cause("ImageVolumesOff", IMAGE_VOLUMES_OFF)
    text = "admission removed the volume of the model: exempt the pods of ModelDeployments from that policy"
    return Cause("ChangedByAdmission", text)


def unfindable(asked: Manifest, created: Manifest) -> Cause | None:
    """Return why nobody would find a created object as ours; None when it has our labels and owner."""
    lost = [*_lost_labels(asked, created), *_lost_owners(asked, created)]
    if not lost:
        return None
    text = f"admission changed {', '.join(lost)}: exempt what begins with {labels.GROUP}/ from that policy"
    return Cause("ChangedByAdmission", text)


def unreadable(asked: Manifest, created: Manifest) -> Cause | None:
    """Return why a created record is none: nobody finds it, or it holds something else than was asked for."""
    if created.get("data") == asked["data"]:
        return unfindable(asked, created)
    return Cause("ChangedByAdmission", "admission changed data: exempt ControllerRevisions from that policy")


def changed(asked: Manifest, created: Manifest) -> tuple[str, ...]:
    """Return what a created pod that can serve has otherwise than asked: its accelerators, in words."""
    return tuple(_changed_accelerators(asked, created)) if asked["kind"] == "Pod" else ()


def _lost_labels(asked: Manifest, created: Manifest) -> Iterator[str]:
    found = created["metadata"].get("labels") or {}
    for key, value in asked["metadata"]["labels"].items():
        if key.startswith(f"{labels.GROUP}/") and found.get(key) != value:
            yield f"metadata.labels[{key}]"


def _lost_owners(asked: Manifest, created: Manifest) -> Iterator[str]:
    owners = created["metadata"].get("ownerReferences") or ()
    found = {owner["uid"] for owner in owners if owner.get("controller")}
    for owner in asked["metadata"]["ownerReferences"]:
        if owner.get("controller") and owner["uid"] not in found:
            yield f"metadata.ownerReferences[{owner['kind']} {owner['name']}]"


def _changed_accelerators(asked: Manifest, created: Manifest) -> Iterator[str]:
    wanted, found = _extended(asked), _extended(created)
    for name, amount in wanted.items():
        if found.get(name) != amount:
            has = f"is {found[name]}" if name in found else "is missing"
            yield f"spec.containers[{labels.ENGINE_CONTAINER}].resources.limits[{name}] {has}, not {amount}"


def _extended(pod: Manifest) -> dict[str, str]:
    limits = (_engine(pod).get("resources") or {}).get("limits") or {}
    return {name: str(amount) for name, amount in limits.items() if "/" in name}


def _engine(pod: Manifest) -> Manifest:
    containers = pod["spec"].get("containers") or ()
    return next((found for found in containers if found["name"] == labels.ENGINE_CONTAINER), {})
