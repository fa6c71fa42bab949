"""Which files of a model repository are worth downloading. Pure: names and sizes in, names out.

A repository often holds the same weights several times: safetensors shards, a consolidated copy, pickles,
ONNX exports, a dozen GGUF quantizations. Only what the loader reads is chosen, never a pickle or Python file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stoker_runtime.errors import ModelError

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
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class RepoFile:
    """One file of a repository."""

    path: str  # relative to the repository's root, with "/"
    size: int  # bytes


@dataclass(frozen=True)
class Selection:
    """The files to have, and what the loader should be pointed at."""

    files: tuple[RepoFile, ...]
    gguf: str | None = None  # the one GGUF file; None means the folder as a whole (safetensors)

    @property
    def size(self) -> int:
        """Total bytes of the files."""
        return sum(file.size for file in self.files)


def select_files(files: Sequence[RepoFile], wanted_file: str | None = None) -> Selection:
    """Choose the files that make a loadable model.

    Args:
        files: everything the repository holds.
        wanted_file: the GGUF file the user named; None lets the repository decide.

    Raises:
        ModelError: ModelNotFound when the named file is not there, InvalidModel when several GGUF files could
            be meant, UnsupportedModel when there is neither safetensors nor GGUF.
    """
    if wanted_file is not None:
        for file in files:
            if file.path == wanted_file:
                return Selection(files=(file,), gguf=file.path)
        raise ModelError(
            f"the repository has no file {wanted_file!r}; {_listing(files, '.gguf')}", reason="ModelNotFound"
        )
    weights = _safetensors(files)
    if weights:
        metadata = [file for file in files if file.path in METADATA_FILES]
        return Selection(files=tuple(metadata + weights))
    ggufs = [file for file in files if file.path.endswith(".gguf")]
    if len(ggufs) == 1:
        return Selection(files=(ggufs[0],), gguf=ggufs[0].path)
    if ggufs:
        raise ModelError(
            f"the repository holds {len(ggufs)} GGUF files; name one, as in hf://org/name/FILE.gguf: "
            f"{_listing(files, '.gguf')}",
            reason="InvalidModel",
        )
    if any(file.path.endswith(_PICKLE_SUFFIXES) for file in files):
        raise ModelError(
            "the repository holds pickled weights only, and unpickling runs code; use a repository or "
            "revision with .safetensors or .gguf files",
            reason="UnsupportedModel",
        )
    raise ModelError(
        "the repository holds no weights: neither .safetensors nor .gguf files", reason="UnsupportedModel"
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
