"""The node image for kind where no registry has one: what it is made of, and under which name it is found."""

import dataclasses
import re
from pathlib import Path

import pytest

from cluster import baseimage, host, nodeimage
from cluster.nodeimage import COMPONENTS, FOLDERS, RECIPE, NodeImage, place, plan
from cluster.versions import Tool, load_tools

NAMES = ("kube", "containerd", "cni", "pause", "kind", "kubeadm", "crictl")


def tools() -> list[Tool]:
    pinned = load_tools()
    return [pinned[name] for name in NAMES]


def test_its_versions_are_the_pinned_ones() -> None:
    pinned = load_tools()
    image = plan(tools(), {}, "base")
    assert image.tag.startswith(f"localhost/stoker-kind-node:{pinned['kube'].version}-")
    assert f"v{image.etcd}" == pinned["kube"].also["go.etcd.io/etcd/server/v3"]
    assert image.dns.endswith(f":{pinned['kube'].also['github.com/coredns/coredns']}")


def test_its_tag_changes_with_every_ingredient() -> None:
    first, *others = tools()
    newer = dataclasses.replace(first, key="another")
    images = [
        plan(tools(), {"Dockerfile": b"a"}, "base"),
        plan(tools(), {"Dockerfile": b"b"}, "base"),
        plan(tools(), {"Dockerfile": b"a"}, "another base"),
        plan([newer, *others], {"Dockerfile": b"a"}, "base"),
    ]
    assert len({image.tag for image in images}) == len(images)


def test_every_image_that_kubeadm_asks_for_has_its_name() -> None:
    image = NodeImage("localhost/node:1", "v1.37.2", "3.6.8", "v1.14.7")
    pairs = [line.split() for line in image.tags().splitlines()]
    assert {old for old, _ in pairs} == {"localhost/stoker-kind/control-plane:v1.37.2"}
    expected = [f"localhost/stoker-kind/{name}:v1.37.2" for name in COMPONENTS]
    assert [new for _, new in pairs] == [*expected, "localhost/stoker-kind/etcd:3.6.8"]


def test_its_programs_are_built_by_stages_that_it_asks_for() -> None:
    built = {name for tool in tools() for name in tool.binaries()}
    assert {*COMPONENTS, "etcd", "coredns", *(name for names in FOLDERS.values() for name in names)} <= built


def test_it_starts_pods_from_the_pause_image_that_it_brings_along() -> None:
    text = (RECIPE / "Dockerfile").read_text()
    assert re.search(r"sandbox_image.*localhost/stoker-pause:1", text)
    assert "stoker-images.service" in text


def test_links_stay_links(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    (built / "kube").write_text("program")
    for name in ("kubelet", "kubectl"):
        (built / name).symlink_to("kube")
    place([built / "kubelet", built / "kubectl"], tmp_path / "root")
    assert {path.name for path in (tmp_path / "root").iterdir()} == {"kube", "kubelet", "kubectl"}
    assert (tmp_path / "root/kubectl").readlink() == Path("kube")
    assert (tmp_path / "root/kubelet").read_text() == "program"


def test_it_is_found_in_the_engine_only_where_it_could_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def succeeds(command: list[str], timeout_s: float = 0) -> bool:
        asked.append(" ".join(command))
        return True

    monkeypatch.setattr(host, "succeeds", succeeds)
    monkeypatch.setattr(baseimage, "planned", lambda: baseimage.named("debian", "bookworm"))
    found = nodeimage.loaded()
    assert found is not None
    assert asked == [f"docker image inspect {found.tag}"]
    monkeypatch.setattr(baseimage, "planned", lambda: None)
    assert nodeimage.loaded() is None


def test_images_of_earlier_pins_leave_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []

    def succeeds(command: list[str], timeout_s: float = 0) -> bool:
        removed.append(command[-1])
        return True

    image = plan(tools(), {}, "base")
    monkeypatch.setattr(host, "run", lambda command: f"{nodeimage.NODE}:v1.0.0-old\n{image.tag}\n")
    monkeypatch.setattr(host, "succeeds", succeeds)
    nodeimage.forget_older(image)
    assert removed == [f"{nodeimage.NODE}:v1.0.0-old"]


def test_modes_do_not_come_from_the_umask(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir(mode=0o700)
    for name, mode in (("program", 0o700), ("file", 0o600)):
        (tmp_path / "bin" / name).write_text("")
        (tmp_path / "bin" / name).chmod(mode)
    (tmp_path / "bin" / "link").symlink_to("absent")
    nodeimage.readable(tmp_path)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("[!l]*")}
    assert modes == {"bin": "0o755", "program": "0o755", "file": "0o644"}
