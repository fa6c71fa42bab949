"""From the object that the API server stored to a ModelDeployment, or to the first thing wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from stoker_operator.api.spec import Spec

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_NAME_LENGTH = 46  # leaves room for "-<revision>-<ordinal>" within the 63 characters of a label


class InvalidSpec(Exception):
    """A ModelDeployment that cannot be served as it is written.

    Args:
        path: the field at fault, from the object's root.
        message: what is wrong and what would be right.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


@dataclass(frozen=True, slots=True)
class ModelDeployment:
    """A valid ModelDeployment."""

    name: str
    namespace: str
    uid: str
    generation: int
    is_deleting: bool
    spec: Spec

    @property
    def num_wanted(self) -> int:
        """Replicas that should serve: none while suspended."""
        return 0 if self.spec.suspend else self.spec.replicas

    @property
    def max_surge(self) -> int:
        """Pods above `num_wanted` during a rollout; 1 when both limits would round to 0."""
        surge = _resolve(self.spec.rollout.max_surge, self.num_wanted, math.ceil)
        return surge or int(self.max_unavailable == 0)

    @property
    def max_unavailable(self) -> int:
        """Pods of `num_wanted` that a rollout may take away."""
        return _resolve(self.spec.rollout.max_unavailable, self.num_wanted, math.floor)


def parse(obj: Mapping[str, Any]) -> ModelDeployment:
    """Read a stored object.

    Raises:
        InvalidSpec: the spec says something that cannot be, although the API server let it pass.
    """
    metadata = obj["metadata"]
    name = metadata["name"]
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise InvalidSpec(
            "metadata.name",
            f"must be at most {MAX_NAME_LENGTH} lower-case letters, digits and dashes that begin with a "
            "letter, because the Service has the same name: create it under such a name",
        )
    try:
        spec = Spec.model_validate(obj.get("spec", {}))
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSpec(".".join(("spec", *map(str, first["loc"]))), first["msg"]) from error
    return ModelDeployment(
        name=name,
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        is_deleting="deletionTimestamp" in metadata,
        spec=spec,
    )


def _resolve(value: int | str, total: int, rounding: Any) -> int:
    if isinstance(value, int):
        return value
    return int(rounding(int(value.removesuffix("%")) * total / 100))
