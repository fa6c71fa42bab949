"""What the readers of model configurations share: fields of a type, and refusals by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stoker_runtime.errors import ModelError

_MAX_INTEGER = 2**40  # far above any size; products of two still fit everywhere
_MAX_NUMBER = 1e30  # and this in a float32


def unsupported(what: str) -> ModelError:
    """Return the refusal of something by name."""
    return ModelError(
        f"{what} is not supported; use another checkpoint of the model, or a server that computes this",
        reason="UnsupportedModel",
    )


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return an integer field, also one that is written as 4096.0. Raises ModelError for anything else."""
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _MAX_INTEGER:
        raise ModelError(f"the model's {key} is {value!r}, an integer is needed")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Return a field that is a positive number. Raises ModelError, naming the key, for anything else.

    A null that a file spells out is refused: families disagree on what it would stand for.
    """
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MAX_NUMBER:
        raise ModelError(f"the model's {key} is {value!r}, a positive number is needed")
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """Return a field that is true or false; null is the default. Raises ModelError for anything else."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelError(f"the model's {key} is {value!r}, true or false is needed")
    return value


def mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a field that is an object; null is an empty one. Raises ModelError for anything else."""
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ModelError(f"the model's {key} is {value!r}, an object is needed")
    return value
