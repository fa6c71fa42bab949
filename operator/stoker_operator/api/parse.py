"""From the object that the API server stored to a ModelDeployment, or to the first thing wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from stoker_operator.api import restart
from stoker_operator.api.spec import Spec

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SOME_MODEL = {"model": {"source": "oci://unknown"}}
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
    """A ModelDeployment.

    Args:
        name: of the object.
        namespace: of the object.
        uid: of the object.
        generation: of the spec.
        is_deleting: it is on its way out.
        spec: what is wanted.
        unread: fields of the spec whose text could not be read, so that defaults stand there; see `salvage`.
        restarted_at: when new pods were last asked for, beside the spec; "" if never. See `restart`.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    is_deleting: bool
    spec: Spec
    unread: frozenset[str] = frozenset()
    restarted_at: str = ""


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
    try:
        return _model(obj, spec, restarted_at=restart.restarted_at(obj))
    except ValueError as error:
        raise InvalidSpec(restart.PATH, restart.ADVICE) from error


def salvage(obj: Mapping[str, Any]) -> ModelDeployment:
    """Read what can be read of an object that `parse` refuses; see `ModelDeployment.unread`."""
    given = obj.get("spec")
    fields = given if isinstance(given, Mapping) else {}
    readable = {name: value for name, value in fields.items() if _is_valid(name, value)}
    unread = frozenset(fields) - frozenset(readable)
    spec = Spec.model_validate({**_SOME_MODEL, **readable})
    return _model(obj, spec, restart.kept_restart(obj), unread)


def _is_valid(name: str, value: Any) -> bool:
    try:
        Spec.model_validate({**_SOME_MODEL, name: value})
    except ValidationError:
        return False
    return True


def _model(
    obj: Mapping[str, Any], spec: Spec, restarted_at: str, unread: frozenset[str] = frozenset()
) -> ModelDeployment:
    metadata = obj["metadata"]
    return ModelDeployment(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        is_deleting="deletionTimestamp" in metadata,
        spec=spec,
        unread=unread,
        restarted_at=restarted_at,
    )
