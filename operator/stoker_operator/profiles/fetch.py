"""The program that downloads models. It is in the operator's own image, whatever engine serves them."""

from __future__ import annotations

from stoker_operator.api import ModelDeployment


def fetch_args(model: ModelDeployment, destination: str) -> list[str]:
    """Return the arguments of ``stoker-runtime`` that download the model into a folder."""
    return ["fetch", f"--source={model.spec.model.source}", f"--destination={destination}"]
