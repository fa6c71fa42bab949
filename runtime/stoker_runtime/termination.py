"""How a process that cannot go on says why: an exit status, and one JSON line in the termination message.

Kubernetes copies the termination message into the pod's status, where the operator finds the reason.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from stoker_runtime.errors import ConfigError, ModelError

ENGINE_CRASHED = "EngineCrashed"
INVALID_CONFIG = "InvalidConfig"
OUT_OF_MEMORY = "OutOfMemory"

_PATH_VARIABLE = "STOKER_TERMINATION_LOG"
_DEFAULT_PATH = "/dev/termination-log"
_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
_MAX_BYTES = 4096  # what a kubelet keeps of it

logger = logging.getLogger(__name__)


def reason_of(error: BaseException) -> str:
    """Return the CamelCase reason for a failure: the model's, InvalidConfig, OutOfMemory or EngineCrashed."""
    if isinstance(error, ModelError):
        return error.reason
    if isinstance(error, ConfigError):
        return INVALID_CONFIG
    return OUT_OF_MEMORY if _is_out_of_memory(error) else ENGINE_CRASHED


def _is_out_of_memory(error: BaseException) -> bool:
    """Know torch's errors without importing it: a device's by its name, the CPU's by its text."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or _CPU_OUT_OF_MEMORY in str(error)


def exit_status(reason: str) -> int:
    """Return the exit status for a reason: 1 the engine crashed, 2 a wrong setting, 3 the model."""
    return {ENGINE_CRASHED: 1, INVALID_CONFIG: 2}.get(reason, 3)


def report(reason: str, message: str) -> None:
    """Write the termination message, if this container has a file for it.

    Args:
        reason: CamelCase word for a status condition.
        message: what is wrong and what to do about it; cut so that the line fits in what a kubelet keeps.
    """
    path = os.environ.get(_PATH_VARIABLE, "")
    if not path and not os.access(_DEFAULT_PATH, os.W_OK):
        return
    try:
        Path(path or _DEFAULT_PATH).write_bytes(encode(reason, message))
    except OSError as error:
        # The process is ending for another reason, which must not be hidden by this one.
        logger.error("cannot write the termination message to %s: %s", path or _DEFAULT_PATH, error)


def encode(reason: str, message: str) -> bytes:
    """Return the line, at most 4096 bytes and still JSON however long the message is."""
    line = msgspec.json.encode({"reason": reason, "message": message})
    message = message[:_MAX_BYTES]
    while len(line) >= _MAX_BYTES:
        message = message[: len(message) * 9 // 10]
        line = msgspec.json.encode({"reason": reason, "message": message + "…"})
    return line + b"\n"
