"""The ModelDeployment API. Its pydantic models are the source of the CRD, the API reference and parsing."""

from stoker_operator.api.parse import InvalidSpec, ModelDeployment, parse, salvage
from stoker_operator.api.spec import Spec

__all__ = ["InvalidSpec", "ModelDeployment", "Spec", "parse", "salvage"]
