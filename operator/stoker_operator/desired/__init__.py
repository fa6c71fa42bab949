"""What should exist for a ModelDeployment: manifests as plain dicts. Pure."""

from stoker_operator.desired.wanted import Wanted, desired, held

__all__ = ["Wanted", "desired", "held"]
