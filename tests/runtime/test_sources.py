"""Model sources against a stand-in hub; the paths a user writes; which files are chosen."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_builders import COMMIT, OLD_COMMIT, Hub, Repo, running_hub

from stoker_runtime.errors import ConfigError, ModelError
from stoker_runtime.sources import HubSource, LocalSource, fetch, parse_source, resolve, resolve_local
from stoker_runtime.sources.hub import download
from stoker_runtime.sources.progress import LogBar, progress_bar
from stoker_runtime.sources.retry import ATTEMPTS
from stoker_runtime.sources.select import RepoFile, select_files

WEIGHTS = os.urandom(300_000)
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "modeling_custom.py": b"print('never')",
    "onnx/model.onnx": b"onnx",
}
TINY = HubSource("org/tiny")


def no_wait(_seconds: float) -> None:
    return None


@pytest.fixture
def hub() -> Iterator[Hub]:
    repos = {
        "org/tiny": Repo({COMMIT: FILES, OLD_COMMIT: FILES | {"config.json": b'{"old": 1}'}}),
        "org/private": Repo({COMMIT: FILES}, token="hf_right"),
        "org/gated": Repo({COMMIT: FILES}, gated=True),
        "org/quants": Repo({COMMIT: {"a.Q4_0.gguf": b"GGUFa", "b.Q8_0.gguf": b"GGUFb"}}),
        "org/parts": Repo(
            {COMMIT: {"m-00001-of-00002.gguf": b"1", "m-00002-of-00002.gguf": b"2", "small.gguf": b"s"}}
        ),
        "org/one-gguf": Repo({COMMIT: {"README.md": b"#", "m.Q4_0.gguf": b"GGUF"}}),
        "org/pickles": Repo({COMMIT: {"config.json": b"{}", "pytorch_model.bin": b"x"}}),
    }
    repos["org/tiny"].refs["v1"] = OLD_COMMIT
    with running_hub(repos) as running:
        yield running


@pytest.fixture
def get(hub: Hub, tmp_path: Path) -> Callable[..., Path]:
    """Download from the stand-in into this test's cache, without waiting between attempts."""

    def get(source: HubSource = TINY, token: str | None = None) -> Path:
        return download(source, tmp_path / "hub", token=token, endpoint=hub.url, sleep=no_wait)

    return get


@pytest.mark.parametrize(
    ("text", "revision", "wanted"),
    [
        pytest.param("hf://org/name", None, HubSource("org/name"), id="repository"),
        pytest.param("hf://org/name@v1.0", None, HubSource("org/name", "v1.0"), id="tag"),
        pytest.param("hf://org/name@refs/pr/4", None, HubSource("org/name", "refs/pr/4"), id="pull-request"),
        pytest.param("org/name", "v2", HubSource("org/name", "v2"), id="bare-with-revision"),
        pytest.param("hf://org/name@v1", "v1", HubSource("org/name", "v1"), id="same-revision-twice"),
        pytest.param("hf://org/n/q/x.gguf@v1", None, HubSource("org/n", "v1", "q/x.gguf"), id="gguf-file"),
        pytest.param("/models/x", None, LocalSource(Path("/models/x")), id="absolute-path"),
        pytest.param("./x", None, LocalSource(Path("x")), id="relative-path"),
        pytest.param("org/x.gguf", None, LocalSource(Path("org/x.gguf")), id="gguf-is-a-path"),
    ],
)
def test_parses_what_people_write(text: str, revision: str | None, wanted: object) -> None:
    assert parse_source(text, revision) == wanted


@pytest.mark.parametrize(
    ("text", "revision", "message"),
    [
        pytest.param("hf://name", None, "org/name", id="no-owner"),
        pytest.param("hf://org/na me", None, "org/name", id="space"),
        pytest.param("hf://org/../etc", None, "org/name", id="dots"),
        pytest.param("hf://org/name@", None, "not a branch", id="empty-revision"),
        pytest.param("hf://org/name@v1", "v2", "contradicts", id="two-revisions"),
        pytest.param("hf://org/name/model.safetensors", None, "only a .gguf file", id="not-gguf"),
        pytest.param("hf://org/name/../../x.gguf", None, "only a .gguf file", id="climbs-out"),
        pytest.param("gpt2", None, "org/name", id="bare-word"),
        pytest.param("/models/x", "v1", "no revisions", id="revision-of-a-path"),
        pytest.param("org/name", "-x", "not a branch", id="revision-like-a-flag"),
    ],
)
def test_refuses_what_means_nothing(text: str, revision: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_source(text, revision)


def test_existing_folder_wins_over_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_source("org/name") == LocalSource(Path("org/name"))


def test_local_folder_with_one_gguf_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "LICENSE").write_text("x")
    assert resolve(str(tmp_path)) == tmp_path / "m.gguf"
    assert resolve(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"


def test_local_folder_with_the_parts_of_one_model_is_that_model(tmp_path: Path) -> None:
    for name in ("m-00002-of-00002.gguf", "m-00001-of-00002.gguf", "mmproj-m-f16.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert resolve(str(tmp_path)) == tmp_path / "m-00001-of-00002.gguf"
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    assert resolve(str(tmp_path)) == tmp_path / "m-00002-of-00002.gguf"  # whose reader names the missing one
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"2 GGUF models; name one of m-00001-of-00002\.gguf, other\.gguf"):
        resolve(str(tmp_path))


PARTS = [f"q/big-{number:05}-of-00003.gguf" for number in (1, 2, 3)]


def test_a_repository_of_an_adapter_is_called_that() -> None:
    files = [RepoFile(name, 1) for name in ("adapter_config.json", "adapter_model.safetensors")]
    with pytest.raises(ModelError, match=r"PEFT adapter .*merge_and_unload") as caught:
        select_files(files)
    assert caught.value.reason == "UnsupportedModel"
    whole = [RepoFile(name, 1) for name in ("config.json", "model.safetensors")]
    assert select_files([*files, *whole]).files


@pytest.mark.parametrize("wanted", [None, *PARTS])
def test_all_parts_of_a_model_are_chosen(wanted: str | None) -> None:
    others = ["README.md", "mmproj-f16.gguf", *(["small.gguf"] if wanted else [])]
    selection = select_files([RepoFile(name, 1) for name in (*reversed(PARTS), *others)], wanted)
    assert [file.path for file in selection.files] == PARTS
    assert (selection.gguf, selection.size) == (PARTS[0], 3)


def test_a_part_that_the_repository_lacks_is_named() -> None:
    files = [RepoFile(name, 1) for name in PARTS if "00002" not in name]
    for wanted in (None, PARTS[0], PARTS[2]):
        with pytest.raises(ModelError, match=r"has no file 'q/big-00002-of-00003\.gguf', though") as caught:
            select_files(files, wanted)
        assert caught.value.reason == "ModelNotFound"


def test_all_parts_are_downloaded(get: Callable[..., Path], hub: Hub) -> None:
    path = get(HubSource("org/parts", file="m-00002-of-00002.gguf"))
    assert path.name == "m-00001-of-00002.gguf"
    assert [part.name for part in sorted(path.parent.iterdir())] == [path.name, "m-00002-of-00002.gguf"]
    assert get(HubSource("org/parts", file="m-00001-of-00002.gguf")) == path


def test_local_safetensors_folder_stays_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("files", "reason", "message"),
    [
        pytest.param([], "ModelNotFound", "it is empty", id="empty"),
        pytest.param(["a.txt"], "ModelNotFound", "it holds a.txt", id="no-weights"),
        pytest.param(["pytorch_model.bin"], "UnsupportedModel", "save_pretrained", id="pickles"),
        pytest.param(["ggml-model-q4_0.bin"], "UnsupportedModel", "convert_hf_to_gguf.py", id="ggml"),
        pytest.param(["consolidated.00.pth"], "UnsupportedModel", "convert_llama_weights", id="meta"),
        pytest.param(["model.onnx"], "UnsupportedModel", "ONNX", id="onnx"),
        pytest.param(["flax_model.msgpack"], "UnsupportedModel", "another framework", id="flax"),
        pytest.param(["a.gguf", "b.gguf"], "InvalidModel", "name one of a.gguf, b.gguf", id="two-ggufs"),
    ],
)
def test_local_folder_that_is_no_model(tmp_path: Path, files: list[str], reason: str, message: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match=message) as caught:
        resolve_local(tmp_path)
    assert caught.value.reason == reason


def test_missing_path_is_model_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model at") as caught:
        resolve(str(tmp_path / "absent"))
    assert caught.value.reason == "ModelNotFound"


def test_a_folder_that_may_not_be_read_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)  # root may read anything

    with pytest.raises(ModelError, match="Permission denied") as caught:
        resolve_local(tmp_path)
    assert caught.value.reason == "ModelAccessDenied"


def test_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"not a .gguf file"):
        resolve_local(tmp_path / "pytorch_model.bin")


def names(*paths: str) -> list[RepoFile]:
    return [RepoFile(path, 1) for path in paths]


@pytest.mark.parametrize(
    ("held", "chosen"),
    [
        pytest.param(
            [
                "config.json",
                "README.md",
                "model.safetensors",
                "model.bin",
                "train.py",
                "onnx/model.safetensors",
            ],
            ["config.json", "model.safetensors"],
            id="single-file",
        ),
        pytest.param(
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "consolidated.safetensors"],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
            id="shards-without-the-consolidated-copy",
        ),
        pytest.param(
            ["weights.safetensors", "x.gguf"], ["weights.safetensors"], id="safetensors-before-gguf"
        ),
        pytest.param(["x.gguf", "config.json"], ["x.gguf"], id="gguf-needs-nothing-else"),
    ],
)
def test_chooses_only_what_the_loader_reads(held: list[str], chosen: list[str]) -> None:
    assert [file.path for file in select_files(names(*held)).files] == chosen


def test_downloads_model_files_and_no_code(get: Callable[..., Path]) -> None:
    folder = get()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_revision_selects_the_commit(get: Callable[..., Path]) -> None:
    folder = get(HubSource("org/tiny", "v1"))
    assert folder.name == OLD_COMMIT
    assert json.loads((folder / "config.json").read_text()) == {"old": 1}


def test_single_gguf_is_returned_as_a_file(get: Callable[..., Path]) -> None:
    assert get(HubSource("org/one-gguf")).name == "m.Q4_0.gguf"


def test_named_gguf_is_the_only_download(get: Callable[..., Path], hub: Hub) -> None:
    path = get(HubSource("org/quants", file="b.Q8_0.gguf"))
    assert path.read_bytes() == b"GGUFb"
    assert hub.downloads("a.Q4_0.gguf") == []


def test_token_opens_a_private_repository(get: Callable[..., Path]) -> None:
    assert (get(HubSource("org/private"), token="hf_right") / "config.json").exists()


@pytest.mark.parametrize(
    ("source", "token", "reason", "message"),
    [
        pytest.param(
            HubSource("org/private"), None, "ModelAccessDenied", "spec.model.secretName", id="no-token"
        ),
        pytest.param(
            HubSource("org/private"), "hf_no", "ModelAccessDenied", "refused access", id="bad-token"
        ),
        pytest.param(HubSource("org/gated"), "hf_any", "ModelAccessDenied", "accept its terms", id="gated"),
        pytest.param(
            HubSource("org/none"), "hf_any", "ModelNotFound", "no such repository", id="no-repository"
        ),
        pytest.param(HubSource("org/none"), None, "ModelAccessDenied", "no such repo", id="stranger"),
        pytest.param(HubSource("org/tiny", "v9"), None, "ModelNotFound", "no such branch", id="no-revision"),
        pytest.param(
            HubSource("org/quants"), None, "InvalidModel", "a.Q4_0.gguf, b.Q8_0.gguf", id="which-gguf"
        ),
        pytest.param(
            HubSource("org/quants", file="c.gguf"), None, "ModelNotFound", "it has a.Q4", id="no-file"
        ),
        pytest.param(HubSource("org/pickles"), None, "UnsupportedModel", "pickled", id="pickles"),
    ],
)
def test_refusal_names_reason_and_remedy(
    get: Callable[..., Path], source: HubSource, token: str | None, reason: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        get(source, token=token)
    assert caught.value.reason == reason
    assert source.repo_id in str(caught.value)


def test_cut_mid_file_resumes_where_it_stopped(
    get: Callable[..., Path], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.faults.cut_after["model.safetensors"] = [210_000]
    folder = get()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.downloads("model.safetensors") == [None, "bytes=200000-"]


def test_killed_download_keeps_its_whole_files(hub: Hub, tmp_path: Path) -> None:
    """A process that dies mid-file, then another on the same cache: only the file it was at comes again."""
    hub.faults.stall_after["model.safetensors"] = [100_000]
    script = (
        "import sys, pathlib; from stoker_runtime import sources;"
        "sources.fetch('hf://org/tiny', pathlib.Path(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONPATH": "runtime", "HF_ENDPOINT": hub.url}
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=environment) as first:
        assert hub.stalled.wait(timeout=60)
        small_files_done = tmp_path / "hub" / "models--org--tiny" / "snapshots" / COMMIT / "tokenizer.json"
        deadline = time.monotonic() + 30
        while not small_files_done.exists() and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        first.kill()
    folder = download(TINY, tmp_path / "hub", endpoint=hub.url, sleep=no_wait)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert len(hub.downloads("tokenizer.json")) == 1
    assert len(hub.downloads("model.safetensors")) == 2


def test_short_outage_is_ridden_out(get: Callable[..., Path], hub: Hub) -> None:
    hub.faults.api_status = [503, 429]
    assert get().name == COMMIT


def test_long_outage_is_download_failed_after_bounded_attempts(get: Callable[..., Path], hub: Hub) -> None:
    hub.faults.api_status = [503] * 50
    with pytest.raises(ModelError, match="503") as caught:
        get()
    assert caught.value.reason == "DownloadFailed"
    assert len(hub.requests) == ATTEMPTS


def test_refusals_are_not_retried(get: Callable[..., Path], hub: Hub) -> None:
    with pytest.raises(ModelError):
        get(HubSource("org/none"), token="hf_any")
    assert len(hub.requests) == 1


def test_finished_commit_needs_no_network(get: Callable[..., Path], hub: Hub) -> None:
    pinned = HubSource("org/tiny", COMMIT)
    folder = get(pinned)
    hub.requests.clear()
    assert get(pinned) == folder
    assert hub.requests == []


def test_branch_falls_back_to_the_cache_when_the_hub_is_away(get: Callable[..., Path], hub: Hub) -> None:
    folder = get()
    hub.faults.api_status = [500] * 50
    assert get() == folder


def test_partial_cache_is_not_served_when_the_hub_is_away(get: Callable[..., Path], hub: Hub) -> None:
    folder = get()
    (folder / "model.safetensors").unlink()
    hub.faults.api_status = [500] * 50
    with pytest.raises(ModelError) as caught:
        get()
    assert caught.value.reason == "DownloadFailed"


def test_moved_branch_brings_the_new_commit(get: Callable[..., Path], hub: Hub) -> None:
    hub.repos["org/tiny"].refs["main"] = OLD_COMMIT
    assert get().name == OLD_COMMIT
    hub.repos["org/tiny"].refs["main"] = COMMIT
    assert get().name == COMMIT


def test_too_small_disk_is_refused_before_any_byte(get: Callable[..., Path], hub: Hub) -> None:
    hub.faults.claimed_size["model.safetensors"] = 2**60
    with pytest.raises(ModelError, match=r"needs 1073741824\.00 GiB more .* free") as caught:
        get()
    assert caught.value.reason == "DiskFull"
    assert hub.downloads("model.safetensors") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_disk_that_fills_up_meanwhile_is_disk_full(
    get: Callable[..., Path], hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "hub").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(tmp_path / "hub")])
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    hub.faults.claimed_size["model.safetensors"] = 1_000  # the listing lies, so the check beforehand passes
    try:
        with (
            pytest.warns(UserWarning, match="Not enough free disk space"),
            pytest.raises(ModelError) as caught,
        ):
            get()
    finally:
        subprocess.run(["umount", str(tmp_path / "hub")], check=True)
    assert caught.value.reason == "DiskFull"


def test_unwritable_cache_says_so(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=r"download failed|cannot write") as caught:
        download(TINY, tmp_path / "file" / "hub", endpoint=hub.url, sleep=no_wait)
    assert caught.value.reason == "DownloadFailed"


def test_leftovers_of_killed_downloads_are_removed_and_live_ones_kept(
    get: Callable[..., Path], tmp_path: Path
) -> None:
    blobs = tmp_path / "hub" / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "dead.1234.incomplete").write_bytes(b"x")
    os.utime(blobs / "dead.1234.incomplete", (0, time.time() - 7200))
    (blobs / "live.5678.incomplete").write_bytes(b"x")
    get()
    assert [path.name for path in blobs.glob("*.incomplete")] == ["live.5678.incomplete"]


def test_pods_sharing_a_cache_download_at_once(get: Callable[..., Path], tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = {future.result() for future in [pool.submit(get) for _ in range(4)]}
    assert len(folders) == 1
    assert (folders.pop() / "model.safetensors").read_bytes() == WEIGHTS


def test_fetch_fills_a_cache_that_resolve_reads_offline(hub: Hub, tmp_path: Path) -> None:
    """As in a pod: the init container has the network and the token, the engine has neither."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"PYTHONPATH": "runtime", "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_right"}
    script = (
        "import sys, pathlib; from stoker_runtime import sources;"
        "print(sources.fetch('hf://org/private', pathlib.Path(sys.argv[1])))"
    )
    fetched = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_TOKEN": ""}
    script = (
        "import sys; from stoker_runtime import sources;"
        "print(sources.resolve('hf://org/private')); assert 'torch' not in sys.modules"
    )
    resolved = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(resolved.stdout.strip()) == Path(fetched.stdout.strip())
    assert (Path(resolved.stdout.strip()) / "model.safetensors").read_bytes() == WEIGHTS


def test_fetch_refuses_local_paths(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only hf://"):
        fetch("/models/x", tmp_path)


def test_progress_is_logged_every_few_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("stoker_runtime.sources.progress.time.monotonic", lambda: clock[0])
    bar = progress_bar("org/tiny", 30)(desc="Reconstructing (incomplete total...)", total=0, unit="B")
    with caplog.at_level(logging.INFO):
        bar.update(10)
        clock[0] += 6
        bar.update(10)
        bar.update(10)
    logged = [
        (record.__dict__["downloaded_bytes"], record.__dict__["total_bytes"]) for record in caplog.records
    ]
    assert logged == [(20, 30)]


def test_download_drives_the_progress_bar(get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins how the hub library names the bar that counts written bytes."""
    counted: dict[str, float] = {}
    count = LogBar.update

    def spy(self: LogBar, n: float | None = 1) -> None:
        counted[self.desc.split(" ")[0]] = counted.get(self.desc.split(" ")[0], 0) + (n or 0)
        count(self, n)

    monkeypatch.setattr(LogBar, "update", spy)
    folder = get()
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert counted["Reconstructing"] == written
