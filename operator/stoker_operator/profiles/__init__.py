"""All that the operator knows about what runs in a pod: pure data and small pure functions."""

from stoker_operator.api import Spec
from stoker_operator.profiles.profile import Cause, Drain, EngineProfile
from stoker_operator.profiles.stoker import STOKER

__all__ = ["STOKER", "Cause", "Drain", "EngineProfile", "profile_of"]


def profile_of(_spec: Spec) -> EngineProfile:
    """Return the profile of the engine that a ModelDeployment runs; there is one so far."""
    return STOKER
