"""What should exist for a ModelDeployment: manifests as plain dicts. Pure."""

from stoker_operator.desired.scale import Scale, scale_of, wanted_replicas
from stoker_operator.desired.wanted import Wanted, desired, held

__all__ = ["Scale", "Wanted", "desired", "held", "scale_of", "wanted_replicas"]
