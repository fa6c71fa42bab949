"""What a run that was killed leaves in the cache is cleared away, and what somebody uses is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import host, leftovers
from cluster.versions import cache_dir


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_dir()


LEFT = (
    "stoker-base-x1/root/etc/passwd",
    "images/app-dev-1.partial",
    "images/.context-x2/Dockerfile",
    "tools/.kube-x3/kube",
    "buildah/buildah3/layer",
)
KEPT = ("images/app-dev-1.tar", "tools/kube-v1-1/kube", "buildah/layers/l", "buildah/pip.conf")


@pytest.fixture
def used_cache(cache: Path) -> Path:
    """A cache in which a run was killed at every step."""
    for name in (*LEFT, *KEPT, "images/.base.lock", "images/.build.lock", "tools/.kube.lock"):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).touch()
    return cache


@pytest.fixture(autouse=True)
def no_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders above are no store that buildah could read."""
    monkeypatch.setattr(leftovers, "forget_containers", lambda: None)


def test_what_nobody_uses_goes(used_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leftovers.sweep()
    assert [name for name in LEFT if (used_cache / name).exists()] == []
    assert [name for name in KEPT if not (used_cache / name).exists()] == []
    assert f"cleared away, from a run that was killed: {used_cache}/stoker-base-x1" in capsys.readouterr().err
    leftovers.sweep()
    assert capsys.readouterr().err == ""


def test_links_into_the_cache_go_and_those_elsewhere_stay(
    used_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "LINKS", tmp_path)
    for name, target in (("mine", used_cache / "stoker-base-x1"), ("theirs", tmp_path / "other")):
        (tmp_path / f"stoker-link-{name}").mkdir()
        (tmp_path / f"stoker-link-{name}" / "link").symlink_to(target)
    leftovers.sweep()
    assert [path.name for path in tmp_path.glob("stoker-link-*")] == ["stoker-link-theirs"]


def test_an_empty_cache_is_left_empty(cache: Path) -> None:
    leftovers.sweep()
    assert not cache.exists()


def test_what_another_run_makes_now_stays(used_cache: Path) -> None:
    with host.locked(used_cache / "tools" / ".kube.lock"):
        leftovers.sweep()
    assert (used_cache / "tools/.kube-x3/kube").exists()
    assert not (used_cache / "images/app-dev-1.partial").exists()


def test_a_process_that_survived_its_parent_keeps_its_folder(
    used_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = used_cache / "stoker-base-x1" / "root"
    script = "import sys; print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"
        leftovers.sweep()
        process.stdin.close()
    assert (root / "etc" / "passwd").exists()
    assert f"used by processes {process.pid}" in capsys.readouterr().err
    leftovers.sweep()
    assert not root.exists()


def test_what_is_mounted_in_it_is_unmounted_first(tmp_path: Path) -> None:
    """A removal that followed a mount would empty what is mounted."""
    folder, elsewhere = tmp_path / "with a blank", tmp_path / "elsewhere"
    (folder / "root" / "proc").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    command = ["mount", "--bind", str(elsewhere), str(folder / "root" / "proc")]
    if os.geteuid() != 0 or not host.succeeds(command):
        pytest.skip("needs root and the right to mount")
    leftovers.remove(folder)
    assert not folder.exists()
    assert (elsewhere / "precious").exists()


def test_mounts_are_found_by_whole_names(tmp_path: Path) -> None:
    text = "".join(f"1 2 0:3 / {path} rw - tmpfs none rw\n" for path in ("/a\\040b/x", "/a\\040bc", "/a"))
    assert leftovers.mounts_below(Path("/a b"), text) == ["/a b/x"]
