"""The header of a GGUF model: metadata and where each tensor lies. No torch, no tensor data.

The `gguf` package reads headers too, but takes seconds over a vocabulary of 50,000 tokens, and both the
server (tokenizer) and the engine (weights) need the header before they are ready; this takes milliseconds.

Source: the GGUF specification in the ggml project's documentation, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_parts import gguf_models, part_names

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32 = 0  # GGML's number of the type
_MAX_ARRAY_DEPTH = 4
_MAX_DIMENSIONS = 4
_LENGTH = struct.Struct("<Q")  # of a string


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies in the file.

    Args:
        name: as written in the file.
        shape: outermost dimension first, as torch has it (the file has it the other way round).
        type_id: GGML type number of the stored data.
        offset: bytes from the start of the file.
        part: of the model, that is, which of its files, from 0.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A parsed header, or those of all parts of a model.

    Args:
        path: of the file, or of the first part.
        metadata: of the file, or of the first part.
        tensors: by their names in the files.
        further_paths: of the other parts, in their order.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    further_paths: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of all parts, as GgufTensor.part counts them."""
        return (self.path, *self.further_paths)


def find_gguf(path: Path) -> Path | None:
    """Return the GGUF file that `path` names or, as a directory without config.json, holds; None if neither.

    Of a model in several parts it is the first that is there.

    Raises:
        ModelError: the directory holds several GGUF models and nothing says which one is meant.
    """
    if path.is_file() and path.suffix == ".gguf":
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    names = sorted(file.name for file in path.glob("*.gguf"))
    models = gguf_models(names)
    if len(models) > 1:
        raise ModelError(f"{path} holds several GGUF models ({', '.join(models)}); name the file to load")
    return next((path / name for parts in models.values() for name in parts if name in names), None)


def read_gguf(path: Path, *, texts: Collection[str] | None = None) -> GgufFile:
    """Read the header of a GGUF file; of a model in several parts, those of all.

    Args:
        path: of the file, or of any part.
        texts: the only ones that matter in arrays of strings, such as a vocabulary and its merges: others are
            "" there, which takes a third of the time. None: all matter.

    Raises:
        ModelError: not a GGUF file of version 2 or 3, cut short, or not all parts are there or fit together.
    """
    parsed = _read_header(path, texts)
    count = parsed.metadata.get("split.count", 0)
    return parsed if not isinstance(count, int) or count < 2 else _joined(parsed, count, texts)


def _joined(given: GgufFile, count: int, texts: Collection[str] | None) -> GgufFile:
    """Read the other parts of a model and put all tensors together."""
    path = given.path
    names = part_names(path.name)
    if len(names) != count:
        raise ModelError(
            f"{path} is one of {count} parts, which are to be named NAME-00001-of-{count:05}.gguf and so on; "
            "rename them, or merge them with llama.cpp's `llama-gguf-split --merge FIRST-PART OUT.gguf`"
        )
    parts: list[GgufFile] = []
    for index, name in enumerate(names):
        part = given if name == path.name else _read_part(path.with_name(name), path, texts)
        found = tuple(part.metadata.get(key) for key in ("split.no", "split.count"))
        if found != (index, count):
            raise ModelError(
                f"{part.path} is no part {index + 1} of {count}: its split.no is {found[0]}, its split.count "
                f"{found[1]}; download all parts anew, of one revision"
            )
        parts.append(part)
    tensors = {
        tensor.name: replace(tensor, part=index)
        for index, part in enumerate(parts)
        for tensor in part.tensors.values()
    }
    first = parts[0]
    stated = first.metadata.get("split.tensors.count", len(tensors))
    if len(tensors) != stated:
        raise ModelError(
            f"{first.path} and its other parts have {len(tensors)} tensors, split.tensors.count is {stated}; "
            "download all parts anew, of one revision"
        )
    return GgufFile(first.path, first.metadata, tensors, tuple(part.path for part in parts[1:]))


def _read_part(path: Path, given: Path, texts: Collection[str] | None) -> GgufFile:
    if not path.exists():
        raise ModelError(
            f"{path} is missing: {given.name} is one part of a model, and all parts have to be in its folder",
            reason="ModelNotFound",
        )
    return _read_header(path, texts)


def _read_header(path: Path, texts: Collection[str] | None) -> GgufFile:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, texts).header(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist", reason="ModelNotFound") from error
    except PermissionError as error:
        raise ModelError(f"{path} cannot be read: permission denied", reason="ModelAccessDenied") from error
    except (ValueError, struct.error, OverflowError) as error:
        # mmap refuses an empty file with a ValueError; a text that is not UTF-8 raises one too
        raise ModelError(f"{path} is not a whole GGUF file: {error}; download it anew") from error


def read_floats(gguf: GgufFile, name: str) -> tuple[float, ...]:
    """Return the values of a small tensor of float32.

    Raises:
        ModelError: the tensor is of another type, or the file is cut short.
    """
    tensor = gguf.tensors[name]
    if tensor.type_id != _FLOAT32:
        raise ModelError(
            f"tensor {name} is not F32; convert the model anew with llama.cpp's convert_hf_to_gguf.py",
            reason="UnsupportedModel",
        )
    layout = f"<{math.prod(tensor.shape)}f"
    path = gguf.paths[tensor.part]
    with path.open("rb") as file:
        file.seek(tensor.offset)
        stored = file.read(struct.calcsize(layout))
    if len(stored) != struct.calcsize(layout):
        raise ModelError(f"{path} is cut short: tensor {name} ends beyond the file; download it anew")
    return struct.unpack(layout, stored)


class _Reader:
    """Walks the header from front to back; every read is checked against the end of the file."""

    def __init__(self, data: mmap.mmap, texts: Collection[str] | None) -> None:
        self._data = data
        self._texts = None if texts is None else {text.encode(): text for text in texts}
        self._at = 0

    def header(self, path: Path) -> GgufFile:
        if self._data[:4] != _MAGIC:
            raise ValueError("it does not start with GGUF")
        self._at = 4
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, this runtime reads little-endian versions 2 and 3")
        num_tensors, num_keys = self._scalar("Q"), self._scalar("Q")
        self._need(num_tensors + num_keys)
        metadata = {}
        for _ in range(num_keys):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"), depth=0)
        tensors = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        placed = {t.name: GgufTensor(t.name, t.shape, t.type_id, start + t.offset) for t in tensors}
        return GgufFile(path=path, metadata=metadata, tensors=placed)

    def _need(self, num_bytes: int) -> None:
        if self._at + num_bytes > len(self._data):
            raise ValueError(f"{num_bytes} bytes wanted at offset {self._at}, the file has {len(self._data)}")

    def _scalar(self, code: str) -> Any:
        layout = "<" + code
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        self._need(length)
        start = self._at
        self._at += length
        return self._data[start : self._at].decode("utf-8")

    def _value(self, type_id: int, depth: int) -> Any:
        if type_id == _STRING:
            return self._string()
        if type_id == _ARRAY:
            return self._array(depth)
        if type_id not in _SCALARS:
            raise ValueError(f"metadata type {type_id} at offset {self._at} is unknown")
        return self._scalar(_SCALARS[type_id])

    def _array(self, depth: int) -> list[Any]:
        if depth >= _MAX_ARRAY_DEPTH:
            raise ValueError(f"arrays nested deeper than {_MAX_ARRAY_DEPTH}")
        type_id, length = self._scalar("I"), self._scalar("Q")
        self._need(length)
        if type_id == _STRING:
            return self._strings(length)
        if type_id not in _SCALARS:
            return [self._value(type_id, depth + 1) for _ in range(length)]
        layout = f"<{length}{_SCALARS[type_id]}"
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return list(values)

    def _strings(self, length: int) -> list[str]:
        """Read strings, or step over those that do not matter: for a vocabulary most of a header's time."""
        data, at, size = self._data, self._at, len(self._data)
        wanted = self._texts
        lengths = {len(text) for text in wanted or ()}
        strings: list[str] = []
        for _ in range(length):
            (num_bytes,) = _LENGTH.unpack_from(data, at)
            start = at + 8
            at = start + num_bytes
            if at > size:
                raise ValueError(f"{num_bytes} bytes wanted at offset {start}, the file has {size}")
            if wanted is None:
                strings.append(data[start:at].decode("utf-8"))
            else:
                strings.append(wanted.get(data[start:at], "") if num_bytes in lengths else "")
        self._at = at
        return strings

    def _tensor(self) -> GgufTensor:
        name = self._string()
        num_dimensions = self._scalar("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {num_dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(num_dimensions))[::-1]
        return GgufTensor(name=name, shape=shape, type_id=self._scalar("I"), offset=self._scalar("Q"))
