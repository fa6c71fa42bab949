"""Which files of a model repository are worth downloading. Pure: names and sizes in, names out.

A repository often holds the same weights several times: safetensors shards, a consolidated copy, pickles,
ONNX exports, a dozen GGUF quantizations. Only what the loader reads is chosen, never a pickle or Python file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_parts import gguf_models, missing_part, part_names
from stoker_runtime.weight_formats import advice

INDEX_FILE = "model.safetensors.index.json"
METADATA_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "quant_config.json",
        "quantize_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        INDEX_FILE,
    }
)
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


@dataclass(frozen=True)
class RepoFile:
    """One file of a repository."""

    path: str  # relative to the repository's root, with "/"
    size: int  # bytes


@dataclass(frozen=True)
class Place:
    """How the place that holds the files is spoken of."""

    noun: str = "the repository"
    example: str = "hf://org/name/FILE.gguf"  # how one of its files is named
    other: str = "name another one, or another revision"  # what to do when it holds no model


_REPOSITORY = Place()


@dataclass(frozen=True)
class Selection:
    """The files to have, and what the loader should be pointed at."""

    files: tuple[RepoFile, ...]
    gguf: str | None = (
        None  # the GGUF file, or its first part; None means the folder as a whole (safetensors)
    )

    @property
    def size(self) -> int:
        """Total bytes of the files."""
        return sum(file.size for file in self.files)


def select_files(
    files: Sequence[RepoFile], wanted_file: str | None = None, place: Place = _REPOSITORY
) -> Selection:
    """Choose the files that make a loadable model.

    Args:
        files: everything the repository holds.
        wanted_file: the GGUF file the user named, or any part of it; None lets the repository decide.
        place: for messages.

    Raises:
        ModelError: ModelNotFound when the named file or a part of it is not there, InvalidModel when several
            GGUF models could be meant, UnsupportedModel when there is neither safetensors nor GGUF.
    """
    if wanted_file is not None:
        return _gguf(files, part_names(wanted_file), wanted_file, place)
    weights, names = _safetensors(files), {file.path for file in files}
    if weights and "adapter_config.json" in names and "config.json" not in names:
        raise ModelError(f"{place.noun} is no model: {advice(names)}", reason="UnsupportedModel")
    if weights:
        metadata = [file for file in files if file.path in METADATA_FILES]
        return Selection(files=tuple(metadata + weights))
    ggufs = gguf_models(file.path for file in files)
    if len(ggufs) == 1:
        ((first, parts),) = ggufs.items()
        return _gguf(files, parts, first, place)
    if ggufs:
        raise ModelError(
            f"{place.noun} holds {len(ggufs)} GGUF models; name one, as in {place.example}: "
            f"{_listing(files, '.gguf')}",
            reason="InvalidModel",
        )
    what_to_do = advice([file.path for file in files]) or place.other
    raise ModelError(
        f"{place.noun} holds neither .safetensors nor .gguf files: {what_to_do}", reason="UnsupportedModel"
    )


def _gguf(files: Sequence[RepoFile], parts: Sequence[str], named: str, place: Place) -> Selection:
    """Choose all parts of a GGUF model."""
    held = {file.path: file for file in files}
    missing = missing_part(parts, held)
    if missing is None:
        return Selection(files=tuple(held[part] for part in parts), gguf=parts[0])
    if named in held:
        raise ModelError(
            f"{place.noun} has no file {missing!r}, though {named!r} is one of {len(parts)} parts; "
            f"{place.other}: {_listing(files, '.gguf')}",
            reason="ModelNotFound",
        )
    raise ModelError(
        f"{place.noun} has no file {named!r}; {_listing(files, '.gguf')}", reason="ModelNotFound"
    )


def _safetensors(files: Sequence[RepoFile]) -> list[RepoFile]:
    roots = [file for file in files if "/" not in file.path and file.path.endswith(".safetensors")]
    if any(file.path == INDEX_FILE for file in files):
        shards = [file for file in roots if _SHARD.fullmatch(file.path)]
        return shards or roots
    single = [file for file in roots if file.path == "model.safetensors"]
    return single or roots


def _listing(files: Sequence[RepoFile], suffix: str, most: int = 12) -> str:
    names = sorted(file.path for file in files if file.path.endswith(suffix))
    if not names:
        return f"it has no {suffix} file at all"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"it has {', '.join(names[:most])}{more}"
