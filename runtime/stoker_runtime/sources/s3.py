"""Downloads from a bucket that speaks S3: obstore does the work, this file decides.

Order: the list of objects, the choice of files, room on the disk, the files in pieces from several threads,
then a folder of links to them under the name of this version. Pods may share the cache. `ref` is written
last, so offline it always leads to a complete model.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import PreconditionError
from obstore.store import S3Store

from stoker_runtime.errors import ModelError, StokerError
from stoker_runtime.sources.bucket import BucketObject, BucketSource, endpoint_of, version_of
from stoker_runtime.sources.disk import check_room
from stoker_runtime.sources.explain_bucket import explain, is_transient
from stoker_runtime.sources.pieces import PieceFile, remove_stale
from stoker_runtime.sources.progress import LogBar, progress_bar
from stoker_runtime.sources.retry import retry
from stoker_runtime.sources.select import Place, RepoFile, Selection, select_files

if TYPE_CHECKING:
    from obstore.store import ClientConfig

logger = logging.getLogger(__name__)

# Each holds one piece in memory: 128 MiB together.
NUM_THREADS = 8
_MAX_VERSIONS = 3
_MAX_NAMED = 12
T = TypeVar("T")


class _Changed(StokerError):
    """An object is another one than was listed."""


def download(
    source: BucketSource,
    cache_dir: Path,
    *,
    environ: Mapping[str, str],
    is_offline: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Have a model of a bucket in the cache and return where it is.

    The bucket is looked at each time; when it does not answer, or is not to be asked, the last finished
    download is used.

    Args:
        source: bucket, folder and perhaps file.
        cache_dir: shared with other processes or not.
        environ: of this process: credentials, region, endpoint and certificates.
        is_offline: whether only the cache is looked at.
        sleep: waits between attempts, in seconds.

    Returns:
        The folder, or the GGUF file in it.

    Raises:
        ConfigError: a variable cannot work, or the bucket is in another region.
        ModelError: ModelNotFound, ModelAccessDenied, DownloadFailed, DiskFull, InvalidModel or
            UnsupportedModel.
    """
    folder = cache_dir / source.folder
    if is_offline:
        return _cached(folder) or _not_cached(source, cache_dir)
    store = _store(source, environ)
    for _ in range(_MAX_VERSIONS):
        try:
            return _Download(source, folder, store, environ, sleep).run()
        except _Changed:
            logger.warning("the bucket changed during the download", extra={"model": str(source)})
        except ModelError as error:
            cached = _cached(folder) if error.reason == "DownloadFailed" else None
            if cached is None:
                raise
            logger.warning(
                "bucket unreachable, using the cached model",
                extra={"model": str(source), "cause": str(error)},
            )
            return cached
    raise ModelError(
        f"{source} changed {_MAX_VERSIONS} times during its download: give each version a folder of its own",
        reason="DownloadFailed",
    )


def _cached(folder: Path) -> Path | None:
    ref = folder / "ref"
    path = folder / ref.read_text() if ref.is_file() else None
    return path if path is not None and path.exists() else None


def _not_cached(source: BucketSource, cache_dir: Path) -> Path:
    raise ModelError(
        f"{source} is not in {cache_dir}, and HF_HUB_OFFLINE forbids to download it", reason="ModelNotFound"
    )


def _store(source: BucketSource, environ: Mapping[str, str]) -> S3Store:
    endpoint = endpoint_of(environ)
    client: ClientConfig = {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=10),
        "read_timeout": timedelta(seconds=30),
        "timeout": timedelta(minutes=10),
    }
    # The library tries once more by itself; how long it is tried in all is ours to say.
    again = {"max_retries": 1, "retry_timeout": timedelta(seconds=30)}
    if endpoint is None:
        return S3Store(source.bucket, client_options=client, retry_config=again)  # type: ignore[arg-type]
    return S3Store(source.bucket, endpoint=endpoint, client_options=client, retry_config=again)  # type: ignore[arg-type]


class _Download:
    """One attempt at one version of the model."""

    def __init__(
        self,
        source: BucketSource,
        folder: Path,
        store: S3Store,
        environ: Mapping[str, str],
        sleep: Callable[[float], None],
    ) -> None:
        self._source = source
        self._folder = folder
        self._store = store
        self._environ = environ
        self._sleep = sleep

    def run(self) -> Path:
        """Download what is missing; see `download`."""
        objects = {one.path: one for one in self._retry(self._list)}
        selection = self._select(objects.values())
        chosen = [objects[file.path] for file in selection.files]
        snapshot = f"snapshots/{version_of(chosen)}"
        try:
            if not (self._folder / snapshot).is_dir():
                self._fill(chosen, snapshot)
            path = f"{snapshot}/{selection.gguf}" if selection.gguf else snapshot
            if _cached(self._folder) != self._folder / path:
                _write(self._folder / "ref", path)
        except OSError as error:
            raise explain(error, self._source, self._environ) from error
        return self._folder / path

    def _list(self) -> list[BucketObject]:
        source = self._source
        prefix = f"{source.prefix}/" if source.prefix else ""
        # One level: a bucket may hold millions of objects further down.
        found = obstore.list_with_delimiter(self._store, prefix=prefix or None)
        # What ends in "/" stands for a folder, in consoles that show some.
        objects = [
            BucketObject(entry["path"].removeprefix(prefix), entry["size"], entry["e_tag"])
            for entry in found["objects"]
            if not entry["path"].endswith("/")
        ]
        if not objects:
            folders = ", ".join(list(found["common_prefixes"])[:_MAX_NAMED])
            held = f"only the folders {folders}" if folders else "nothing"
            raise ModelError(
                f"{source}: in {source.prefix or '/'} bucket {source.bucket} has {held}: correct the folder",
                reason="ModelNotFound",
            )
        return objects

    def _select(self, objects: Iterable[BucketObject]) -> Selection:
        source = self._source
        files = [RepoFile(one.path, one.size) for one in objects]
        place = Place("the folder", f"{source}/FILE.gguf", "name another folder")
        try:
            return select_files(files, source.file, place)
        except ModelError as error:
            raise ModelError(f"{source}: {error}", reason=error.reason) from error

    def _fill(self, chosen: list[BucketObject], snapshot: str) -> None:
        blobs = self._folder / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        with _alone(self._folder):
            remove_stale(blobs, {one.name for one in chosen}, time.time())
            files = {one: PieceFile(blobs / one.name, one.size) for one in chosen}
            self._fetch({one: file for one, file in files.items() if not file.is_whole})
        _link({one.path: one.name for one in chosen}, self._folder / snapshot)

    def _fetch(self, files: dict[BucketObject, PieceFile]) -> None:
        missing = {one: file.missing() for one, file in files.items()}
        num_left = sum(end - start for pieces in missing.values() for start, end in pieces)
        check_room(num_left, str(self._source), self._folder)
        total = sum(one.size for one in files)
        bar = progress_bar(str(self._source), total)(desc="Reconstruct", initial=total - num_left)
        logger.info("download starts", extra={"model": str(self._source), "total_bytes": total})
        for file in files.values():
            file.begin()
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            tasks = [
                threads.submit(self._piece, one, files[one], span, bar)
                for one, pieces in missing.items()
                for span in pieces
            ]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        for file in files.values():
            file.finish()
        logger.info("download done", extra={"model": str(self._source), "total_bytes": total})

    def _piece(self, one: BucketObject, file: PieceFile, span: tuple[int, int], bar: LogBar) -> None:
        data = self._retry(lambda: self._get(one, span))
        file.write(span[0], data)
        bar.update(len(data))

    def _get(self, one: BucketObject, span: tuple[int, int]) -> memoryview:
        key = "/".join(part for part in (self._source.prefix, one.path) if part)
        options: obstore.GetOptions = {"range": span}
        if one.etag is not None:
            options["if_match"] = one.etag
        try:
            data = memoryview(obstore.get(self._store, key, options=options).bytes())
        except (PreconditionError, FileNotFoundError) as error:
            raise _Changed from error
        if len(data) != span[1] - span[0]:
            raise ConnectionError(f"{key}: {len(data)} bytes came in place of {span[1] - span[0]}")
        return data

    def _retry(self, call: Callable[[], T]) -> T:
        return retry(
            call,
            str(self._source),
            lambda error: explain(error, self._source, self._environ),
            is_transient,
            self._sleep,
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from the same download, where the disk can.

    Where it cannot, as some network disks, they do it at the same time, each all of it.
    """
    with (folder / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("the cache cannot be locked", extra={"cause": str(error)})
        yield


def _link(names: Mapping[str, str], snapshot: Path) -> None:
    """Make the folder of a version, of links to the files in `blobs`; it is there whole or not at all."""
    made = snapshot.with_name(f".{uuid.uuid4().hex}")
    for path, name in names.items():
        link = made / path
        link.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(link.relative_to(made).parts) - 1)
        link.symlink_to(f"{up}../../blobs/{name}")
    try:
        made.rename(snapshot)
    except OSError:
        # Another process was faster with the same.
        if not snapshot.is_dir():
            raise


def _write(path: Path, text: str) -> None:
    written = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    written.write_text(text)
    os.replace(written, path)
