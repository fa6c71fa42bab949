"""Which namespaces passes may act in: those whose caches have been filled and may still be read.

One namespace that takes its rights from the operator holds up no other. The whole cluster counts as one
namespace, which stays open once it is: where the rights on it go, so do those to write.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from stoker_operator.informer.reflector import Reflector

logger = logging.getLogger(__name__)

WHAT_TO_DO = (
    "nothing in it is reconciled until it may be: give the operator's service account its Role and "
    "RoleBinding in this namespace, as helm upgrade does"
)


class Namespaces:
    """The state of each namespace, from that of the reflectors that read it.

    Args:
        reflectors: all of them. Those of the whole cluster count for each namespace.
        opened: called with a namespace when passes may act in it (again); None is the whole cluster.
    """

    def __init__(self, reflectors: list[Reflector], opened: Callable[[str | None], None]) -> None:
        self.any_open = asyncio.Event()
        self._reflectors = reflectors
        self._opened = opened
        required = (reflector.scope.namespace for reflector in reflectors if reflector.scope.required)
        self._readers = {
            name: [reflector for reflector in reflectors if reflector.scope.namespace in (name, None)]
            for name in dict.fromkeys(required)
        }
        self._open: set[str | None] = set()
        self._blocked: dict[str, str] = {}
        for reflector in reflectors:
            reflector.subscribe(self._update)

    def is_open(self, namespace: str) -> bool:
        """Whether passes may act in a namespace."""
        return namespace in self._open or None in self._open

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether all is served that may be read, and what is waited for or blocked, for the probe."""
        waiting = [
            str(reflector.scope)
            for reflector in self._reflectors
            if not reflector.synced.is_set() and reflector.scope.namespace not in self._blocked
        ]
        blocked = {"blocked": dict(self._blocked)} if self._blocked else {}
        return bool(self._open) and not waiting, {"waiting_for": sorted(waiting), **blocked}

    def _update(self) -> None:
        for name, readers in self._readers.items():
            reason = _refusal(readers)
            if name is not None and reason is not None:
                self._block(name, reason)
                continue
            if name is not None:
                self._blocked.pop(name, None)
            if name not in self._open and all(reader.synced.is_set() for reader in readers):
                self._open.add(name)
                self.any_open.set()
                self._opened(name)

    def _block(self, name: str, reason: str) -> None:
        if name not in self._blocked:
            logger.warning("namespace %s may not be read (%s): %s", name, reason, WHAT_TO_DO)
        self._blocked[name] = reason
        self._open.discard(name)


def _refusal(readers: list[Reflector]) -> str | None:
    """Why the API server does not let us read what we have to; None when it does, or has not said."""
    refusals = (reader.refusal for reader in readers if reader.scope.required)
    return next((refusal for refusal in refusals if refusal is not None), None)
