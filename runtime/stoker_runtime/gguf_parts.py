"""Names of GGUF files: which of several are the parts of one model. Pure.

Source: llama.cpp's llama-gguf-split writes NAME-00001-of-00003.gguf and so on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_PROJECTOR = "mmproj"  # how files begin that are for images alone


def part_names(name: str) -> tuple[str, ...]:
    """Return the names of all parts of the model that a file is a part of; its own where it is none."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return (name,)
    return tuple(f"{match[1]}-{number:05}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1))


def gguf_models(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the GGUF models among some files: the names of all their parts, by that of the first.

    Parts may be among them that are not among the files. Files for images alone are no models.
    """
    found = sorted(name for name in names if name.endswith(".gguf"))
    models = (part_names(name) for name in found if not name.rpartition("/")[2].startswith(_PROJECTOR))
    return {parts[0]: parts for parts in models}


def missing_part(parts: Collection[str], names: Collection[str]) -> str | None:
    """Return the first part of a model that is not among some files; None where all are."""
    return next((part for part in parts if part not in names), None)
