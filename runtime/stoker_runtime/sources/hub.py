"""Downloads from a Hugging Face compatible hub: huggingface_hub does the work, this file decides.

Order: what the cache can answer alone, the repository's file list, the choice of files, room on the disk, the
download. Pods may share the cache: the library locks each blob and renames it into place when it is whole.
The revision's ref is written last, so offline a ref always leads to a complete model.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from stoker_runtime.errors import ModelError
from stoker_runtime.sources import HubSource
from stoker_runtime.sources.disk import check_room
from stoker_runtime.sources.explain import explain, is_transient
from stoker_runtime.sources.progress import progress_bar
from stoker_runtime.sources.retry import retry
from stoker_runtime.sources.select import RepoFile, Selection, select_files

logger = logging.getLogger(__name__)
# Its own handler prints plain text to stderr, beside the JSON lines that the root logger writes.
logging.getLogger("huggingface_hub").handlers.clear()

# A download that lives touches its file at least every few seconds; one that was killed leaves it for good.
STALE_PARTIAL_S = 3600.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
T = TypeVar("T")


@dataclass(frozen=True)
class _Listing:
    """The files of one commit."""

    commit: str
    files: tuple[RepoFile, ...]


def default_cache_dir() -> Path:
    """Return the library's cache: $HF_HUB_CACHE, else $HF_HOME/hub."""
    return Path(constants.HF_HUB_CACHE)


def download(
    source: HubSource,
    cache_dir: Path,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Have a repository's model in the cache and return where it is.

    A finished download of a commit needs no network. A branch or tag is looked up each time; when the hub
    does not answer, or HF_HUB_OFFLINE is set, the last finished download of that name is used.

    Args:
        source: repository, revision and perhaps file.
        cache_dir: a hub cache, shared with other processes or not.
        token: access token; None lets the library find one.
        endpoint: the hub's address; None is $HF_ENDPOINT, else the public hub.
        sleep: waits between attempts, in seconds.

    Returns:
        The snapshot folder, or the GGUF file in it.

    Raises:
        ModelError: ModelNotFound, ModelAccessDenied, DownloadFailed, DiskFull, InvalidModel or
            UnsupportedModel.
    """
    cached = _cached_listing(source, cache_dir)
    if cached is not None and _COMMIT.fullmatch(source.revision):
        found = _complete(cached, source, cache_dir)
        if found is not None:
            return found
    api = HfApi(endpoint=endpoint, token=token, library_name="stoker")
    try:
        listing = _retry(lambda: _list_repository(api, source), source, sleep)
    except ModelError as error:
        found = _complete(cached, source, cache_dir) if cached and error.reason == "DownloadFailed" else None
        if found is None:
            raise
        logger.warning(
            "hub unreachable, using the cached model", extra={"model": source.repo_id, "cause": str(error)}
        )
        return found
    selection = _select(listing, source)
    missing = _missing(selection, source, listing.commit, cache_dir)
    if missing:
        _make_room(missing, source, cache_dir)
        bar = progress_bar(source.repo_id, selection.size)
        logger.info("download starts", extra={"model": source.repo_id, "total_bytes": selection.size})
        _retry(
            lambda: snapshot_download(
                source.repo_id,
                revision=listing.commit,
                cache_dir=cache_dir,
                allow_patterns=[glob.escape(file.path) for file in selection.files],
                token=token,
                endpoint=endpoint,
                library_name="stoker",
                tqdm_class=cast("Any", bar),
            ),
            source,
            sleep,
        )
        logger.info("download done", extra={"model": source.repo_id, "commit": listing.commit})
    _write_ref(source, listing.commit, cache_dir)
    return _local_path(selection, source, listing.commit, cache_dir)


def _complete(listing: _Listing, source: HubSource, cache_dir: Path) -> Path | None:
    """Return where the model is when the cache holds every file of it."""
    selection = _select(listing, source)
    if _missing(selection, source, listing.commit, cache_dir):
        return None
    return _local_path(selection, source, listing.commit, cache_dir)


def _list_repository(api: HfApi, source: HubSource) -> _Listing:
    info = api.model_info(source.repo_id, revision=source.revision, files_metadata=True)
    if info.sha is None:
        raise OSError(f"the hub named no commit for revision {source.revision}")
    files = tuple(RepoFile(sibling.rfilename, sibling.size or 0) for sibling in info.siblings or ())
    return _Listing(commit=info.sha, files=files)


def _cached_listing(source: HubSource, cache_dir: Path) -> _Listing | None:
    commit = source.revision
    if not _COMMIT.fullmatch(commit):
        ref = _repo_folder(source, cache_dir) / "refs" / source.revision
        if not ref.is_file():
            return None
        commit = ref.read_text().strip()
    try:
        files = get_cached_repo_tree(source.repo_id, revision=commit, cache_dir=cache_dir)
    except CachedRepoTreeNotFoundError:
        return None
    return _Listing(commit=commit, files=tuple(RepoFile(file.path, file.size) for file in files))


def _select(listing: _Listing, source: HubSource) -> Selection:
    try:
        return select_files(listing.files, source.file)
    except ModelError as error:
        raise ModelError(f"{source}: {error}", reason=error.reason) from error


def _missing(selection: Selection, source: HubSource, commit: str, cache_dir: Path) -> list[RepoFile]:
    return [
        file
        for file in selection.files
        if not isinstance(
            try_to_load_from_cache(source.repo_id, file.path, cache_dir=cache_dir, revision=commit), str
        )
    ]


def _make_room(missing: list[RepoFile], source: HubSource, cache_dir: Path) -> None:
    """Delete what killed downloads left behind, then check that the missing files fit."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        for partial in (_repo_folder(source, cache_dir) / "blobs").glob("*.incomplete"):
            if time.time() - partial.stat().st_mtime > STALE_PARTIAL_S:
                partial.unlink(missing_ok=True)
        check_room(sum(file.size for file in missing), str(source), cache_dir)
    except OSError as error:
        raise explain(error, str(source), os.environ) from error


def _write_ref(source: HubSource, commit: str, cache_dir: Path) -> None:
    """Record which commit a branch or tag means now, in the cache layout of the library; atomically."""
    ref = _repo_folder(source, cache_dir) / "refs" / source.revision
    if _COMMIT.fullmatch(source.revision) or (ref.is_file() and ref.read_text().strip() == commit):
        return
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        written = ref.with_name(f".{ref.name}.{uuid.uuid4().hex}")
        written.write_text(commit)
        os.replace(written, ref)
    except OSError as error:
        raise explain(error, str(source), os.environ) from error


def _local_path(selection: Selection, source: HubSource, commit: str, cache_dir: Path) -> Path:
    folder = _repo_folder(source, cache_dir) / "snapshots" / commit
    return folder / selection.gguf if selection.gguf else folder


def _repo_folder(source: HubSource, cache_dir: Path) -> Path:
    return cache_dir / f"models--{source.repo_id.replace('/', '--')}"


def _retry(call: Callable[[], T], source: HubSource, sleep: Callable[[float], None]) -> T:
    return retry(
        call, str(source), lambda error: explain(error, str(source), os.environ), is_transient, sleep
    )
