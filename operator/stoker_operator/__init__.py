"""Stoker's control plane: a kopf operator that turns ModelDeployments into serving pods."""

__version__ = "0.1.0"
