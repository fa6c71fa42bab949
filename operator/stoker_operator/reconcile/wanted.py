"""What should exist for a ModelDeployment, made once for passes that follow one another."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from stoker_operator.api import InvalidSpec, parse
from stoker_operator.config import OperatorConfig
from stoker_operator.desired import Wanted, desired, held, wanted_replicas
from stoker_operator.reconcile.caches import Key

Object = dict[str, Any]

# A rollout is many passes over one ModelDeployment; a resync, over all of them, finds none here. Each takes
# some 30 KiB.
MAX_REMEMBERED = 32


_METADATA = ("name", "namespace", "uid", "generation", "deletionTimestamp", "annotations")


class WantedLately:
    """Makes what is wanted, and remembers it while what it is made of stays the same.

    That is a part of the object, and nothing else is looked at, so a status that was written changes nothing.
    Its version would not do: after a restored backup another object may have it. The settings stay the same
    for as long as a process runs.

    Args:
        config: the operator's settings.
    """

    def __init__(self, config: OperatorConfig) -> None:
        self._config = config
        self._lately: OrderedDict[Key, tuple[Object, Wanted]] = OrderedDict()

    def __call__(self, key: Key, model: Object) -> Wanted:
        """Return what should exist, also where the operator does not allow what is asked for.

        Raises:
            InvalidSpec: the spec cannot be read.
        """
        read = _part(model)
        found = self._lately.pop(key, None)
        if found is None or found[0] != read:
            found = (read, self._make(read))
        self._lately[key] = found
        if len(self._lately) > MAX_REMEMBERED:
            self._lately.popitem(last=False)
        return found[1]

    def forget(self, key: Key) -> None:
        """The ModelDeployment is gone."""
        self._lately.pop(key, None)

    def _make(self, read: Object) -> Wanted:
        parsed = parse(read)
        num_wanted = wanted_replicas(parsed)
        try:
            return desired(parsed, self._config, num_wanted)
        except InvalidSpec as error:
            return held(parsed, error, num_wanted)


def _part(model: Object) -> Object:
    """Return what is looked at of a ModelDeployment."""
    metadata = model["metadata"]
    return {
        "metadata": {name: metadata[name] for name in _METADATA if name in metadata},
        "spec": model.get("spec", {}),
        "status": {"restartedAt": (model.get("status") or {}).get("restartedAt")},
    }
