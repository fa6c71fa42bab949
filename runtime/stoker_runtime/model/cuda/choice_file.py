"""Decisions of earlier starts, in a file for each kind of device and each version of what was measured.

The file only saves time: one that is damaged, belongs to something else or cannot be written costs a line in
the log and a measurement.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

import msgspec
import torch
import triton

from stoker_runtime.model.cuda.choices import Decision, is_sound

_FORMAT = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """What times hold for.

    Args:
        device: its name; a slice of a device has one of its own.
        capability: such as "9.0".
        num_processors: of the device.
        torch: version.
        cuda: version that torch was built for.
        triton: version.
        kernels: hash of this room's sources.
    """

    device: str
    capability: str
    num_processors: int
    torch: str
    cuda: str
    triton: str
    kernels: str


@dataclass(frozen=True, slots=True)
class _File:
    format: int
    machine: Machine
    decisions: list[Decision]


def machine_of(device: torch.device) -> Machine:
    """Describe a device and the software on it."""
    versions = (str(torch.__version__), torch.version.cuda or "", triton.__version__, kernels_hash())
    if device.type != "cuda":
        return Machine(device.type, "", 0, *versions)
    found = torch.cuda.get_device_properties(device)
    capability = f"{found.major}.{found.minor}"
    return Machine(found.name, capability, found.multi_processor_count, *versions)


@cache
def kernels_hash() -> str:
    """Hash the sources of this room: other kernels, candidates or shapes make earlier times worthless."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def default_folder(environment: Mapping[str, str]) -> Path | None:
    """Return where files are kept: `$XDG_CACHE_HOME/stoker`, else `~/.cache/stoker`; None without a home."""
    base = environment.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # others are to be ignored, says the XDG Base Directory Specification
        return Path(base) / "stoker"
    try:
        return Path.home() / ".cache" / "stoker"
    except RuntimeError:
        return None


def file_of(folder: Path, machine: Machine) -> Path:
    """Return a machine's file."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", machine.device).strip("-").lower()
    digest = hashlib.sha256(msgspec.json.encode(asdict(machine))).hexdigest()[:16]
    return folder / f"kernel-choices-{name}-{digest}.json"


def read(path: Path, machine: Machine) -> tuple[Decision, ...]:
    """Return what the file says; nothing where it is missing or cannot be trusted."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError, msgspec.DecodeError) as error:  # ValueError: not UTF-8
        logger.warning("%s cannot be read, so kernels are measured again: %s", path, error)
        return ()
    if found.format != _FORMAT or found.machine != machine or not all(map(is_sound, found.decisions)):
        logger.warning("%s belongs to something else, so kernels are measured again", path)
        return ()
    return tuple(found.decisions)


def write(path: Path, machine: Machine, decisions: Sequence[Decision]) -> None:
    """Add decisions to the file, which is replaced at once: others may read it, and add theirs, meanwhile."""
    merged = {decision.choice: decision for decision in (*read(path, machine), *decisions)}
    text = msgspec.json.format(msgspec.json.encode(_File(_FORMAT, machine, list(merged.values()))))
    scratch = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.write_bytes(text + b"\n")
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be written, so the next start measures kernels again: %s", path, error)
