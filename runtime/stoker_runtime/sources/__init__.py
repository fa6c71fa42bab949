"""Where a model comes from: a local path, a repository on a Hugging Face compatible hub, or a bucket.

`resolve` turns what the user wrote into a path the loader can open; `fetch` is the same download as a step
of its own, for an init container. Everything that can go wrong is a `ModelError` or `ConfigError` that says
what to do. No torch here: the server process resolves names, too.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from stoker_runtime.errors import ConfigError, ModelError
from stoker_runtime.gguf_parts import gguf_models
from stoker_runtime.sources.bucket import BucketSource, parse_bucket
from stoker_runtime.sources.environment import check_environment
from stoker_runtime.weight_formats import advice

# The folder of the cache with what came out of buckets, beside the hub's.
BUCKETS = "s3"
_REPO_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}")


@dataclass(frozen=True)
class HubSource:
    """A repository on a hub, perhaps one file of it."""

    repo_id: str  # "org/name"
    revision: str = "main"  # branch, tag, commit or refs/...
    file: str | None = None  # a GGUF file inside the repository

    def __str__(self) -> str:
        return f"hf://{self.repo_id}{'/' + self.file if self.file else ''}@{self.revision}"


@dataclass(frozen=True)
class LocalSource:
    """A folder or file that is already here."""

    path: Path


def parse_source(text: str, revision: str | None = None) -> HubSource | BucketSource | LocalSource:
    """Read `hf://org/name[/FILE.gguf][@revision]`, `org/name[@revision]`, `s3://bucket/folder` or a path.

    Args:
        text: what the user wrote. A path that exists wins over a repository of the same name.
        revision: a revision given apart from the text.

    Raises:
        ConfigError: neither a path nor a repository, or two revisions that disagree.
    """
    if text.startswith("hf://"):
        return _with_revision(_parse_hub(text.removeprefix("hf://"), text), revision, text)
    if text.startswith("s3://"):
        if revision is not None:
            raise ConfigError(f"--revision {revision}: {text} is in a bucket, where nothing has revisions")
        return parse_bucket(text)
    looks_like_path = text.startswith(("/", "./", "../", "~")) or text.endswith(".gguf")
    if looks_like_path or Path(text).exists():
        if revision is not None:
            raise ConfigError(f"--revision {revision}: {text} is a local path, which has no revisions")
        return LocalSource(Path(text).expanduser())
    if "/" not in text:
        raise ConfigError(f"--model {text!r}: no such file or folder; a hub repository is written org/name")
    return _with_revision(_parse_hub(text, text), revision, text)


def resolve(
    model: str, revision: str | None = None, *, cache_dir: Path | None = None, token: str | None = None
) -> Path:
    """Return the local folder or GGUF file of a model, downloading it first when it comes from elsewhere.

    Args:
        model: see `parse_source`.
        revision: branch, tag or commit, when the text names none.
        cache_dir: the hub cache; None is the library's own, $HF_HOME/hub.
        token: access token; None lets the library look in $HF_TOKEN and its login file.

    Returns:
        A folder in the layout of the transformers library, or one GGUF file.

    Raises:
        ConfigError: the text means nothing, or an environment variable of the hub's library does not.
        ModelError: the model is not there, not ours to read, not loadable, or does not fit on the disk.
    """
    source = parse_source(model, revision)
    if isinstance(source, LocalSource):
        return resolve_local(source.path)
    check_environment(os.environ)
    from stoker_runtime.sources.hub import default_cache_dir, download  # slow to import, and only now needed

    cache = cache_dir or default_cache_dir()
    if isinstance(source, BucketSource):
        return _from_bucket(source, cache.parent / BUCKETS)
    return download(source, cache, token=token)


def fetch(source: str, destination: Path, *, token: str | None = None) -> Path:
    """Download a model into a folder that serves as HF_HOME later.

    Args:
        source: `hf://org/name[/FILE.gguf][@revision]` or `s3://bucket/folder[/FILE.gguf]`.
        destination: the cache volume; files land below `destination/hub` or `destination/s3`, where `resolve`
            finds them when HF_HOME is the destination.
        token: access token; None lets the library look in $HF_TOKEN and its login file.

    Returns:
        The folder or GGUF file, as `resolve` gives it.

    Raises:
        ConfigError: the source is a path, or see `resolve`.
        ModelError: see `resolve`.
    """
    parsed = parse_source(source)
    if isinstance(parsed, LocalSource):
        raise ConfigError(
            f"--source {source!r}: only hf://org/name[@revision] and s3://bucket/folder can be fetched"
        )
    if isinstance(parsed, BucketSource):
        return _from_bucket(parsed, destination / BUCKETS)
    check_environment(os.environ)
    from stoker_runtime.sources.hub import download

    return download(parsed, destination / "hub", token=token)


def _from_bucket(source: BucketSource, cache_dir: Path) -> Path:
    from stoker_runtime.sources.s3 import download

    is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return download(source, cache_dir, environ=os.environ, is_offline=is_offline)


def resolve_local(path: Path) -> Path:
    """Return the safetensors folder or the GGUF file that a path means; of a model in parts, one of them.

    Raises:
        ModelError: ModelNotFound when nothing is there, ModelAccessDenied when it may not be read,
            InvalidModel when it is not one model.
    """
    try:
        if path.is_file():
            if path.suffix != ".gguf":
                raise ModelError(f"{path} is not a .gguf file; give a folder for safetensors models")
            return path
        names = sorted(os.listdir(path))
    except FileNotFoundError as error:
        raise ModelError(f"there is no model at {path}", reason="ModelNotFound") from error
    except OSError as error:
        reason = "ModelAccessDenied" if isinstance(error, PermissionError) else "ModelNotFound"
        raise ModelError(f"cannot read {path}: {error.strerror}", reason=reason) from error
    if any(name.endswith(".safetensors") for name in names):
        return path
    ggufs = gguf_models(names)
    if len(ggufs) == 1:
        return next(path / name for parts in ggufs.values() for name in parts if name in names)
    if ggufs:
        raise ModelError(f"{path} holds {len(ggufs)} GGUF models; name one of {', '.join(list(ggufs)[:12])}")
    what_to_do = advice(names)
    if what_to_do is not None:
        raise ModelError(
            f"{path} has neither .safetensors nor .gguf files: {what_to_do}", reason="UnsupportedModel"
        )
    held = f"it holds {', '.join(names[:12])}" if names else "it is empty"
    raise ModelError(
        f"{path} has neither .safetensors nor .gguf files; {held}; name the folder or file with the weights",
        reason="ModelNotFound",
    )


def _parse_hub(rest: str, text: str) -> HubSource:
    name, at, revision = rest.partition("@")
    parts = name.split("/")
    repo_id = "/".join(parts[:2])
    if len(parts) < 2 or len(repo_id) > 96 or not all(_REPO_ID.fullmatch(part) for part in parts[:2]):
        raise ConfigError(f"{text!r}: a hub repository is written org/name[@revision]")
    if at and not _REVISION.fullmatch(revision):
        raise ConfigError(f"{text!r}: {revision!r} is not a branch, tag or commit")
    file = "/".join(parts[2:]) or None
    if file is not None and (not file.endswith(".gguf") or ".." in parts or "" in parts):
        raise ConfigError(f"{text!r}: only a .gguf file can be named inside a repository")
    return HubSource(repo_id=repo_id, revision=revision or "main", file=file)


def _with_revision(source: HubSource, revision: str | None, text: str) -> HubSource:
    if revision is None:
        return source
    if not _REVISION.fullmatch(revision):
        raise ConfigError(f"--revision {revision!r} is not a branch, tag or commit")
    if "@" in text and source.revision != revision:
        raise ConfigError(f"--revision {revision} contradicts {text!r}; give one of them")
    return replace(source, revision=revision)
