"""All that the operator knows about what runs in a pod: pure data and small pure functions."""

from collections.abc import Mapping
from typing import Any

from stoker_operator.api import Spec, labels
from stoker_operator.profiles.container import TMP, EngineContainer, MountedModel, Probe, Scratch
from stoker_operator.profiles.fetch import fetch_args
from stoker_operator.profiles.profile import Cause, Drain, EngineProfile, LoadPage
from stoker_operator.profiles.stoker import STOKER

__all__ = [
    "STOKER",
    "TMP",
    "Cause",
    "Drain",
    "EngineContainer",
    "EngineProfile",
    "LoadPage",
    "MountedModel",
    "Probe",
    "Scratch",
    "fetch_args",
    "profile_of",
    "profile_of_pod",
]

_PROFILES = {profile.name: profile for profile in (STOKER,)}


def profile_of(_spec: Spec) -> EngineProfile:
    """Return the profile of the engine that a ModelDeployment runs; there is one so far."""
    return STOKER


def profile_of_pod(pod: Mapping[str, Any]) -> EngineProfile:
    """Return the profile of the engine that a pod runs, whatever its ModelDeployment asks for by now.

    A pod that names none is from before pods did, and one that names an unknown one is of an operator with
    more of them: ours is the best guess for either.
    """
    name = (pod["metadata"].get("labels") or {}).get(labels.ENGINE_PROFILE, "")
    return _PROFILES.get(name, STOKER)
