"""What the readers of model configurations share: fields of a type, and refusals by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stoker_runtime.errors import ModelError


def unsupported(what: str) -> ModelError:
    """Return the refusal of something by name."""
    return ModelError(f"{what} is not supported", reason="UnsupportedModel")


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return an integer field. Raises ModelError, naming the key, for anything else."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(f"the model's {key} is {value!r}, an integer is needed")
    return value
