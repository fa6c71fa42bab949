import configparser
import dataclasses
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cluster import baseimage, buildah, host, images
from cluster.api import ClusterError
from cluster.baseimage import bootstrap_command, release, sources
from cluster.images import Image, context_files, forget_older, image_key, stage_context
from cluster.versions import cache_dir


def make_image(folder: Path, **changes: object) -> Image:
    """An image of two files; `folder` becomes its context."""
    (folder / "src").mkdir(exist_ok=True)
    (folder / "src" / "a.py").write_text("a")
    (folder / "unrelated").write_text("u")
    (folder / "Dockerfile").write_text("FROM scratch\n")
    fields: dict[str, object] = {
        "tag": "localhost/thing:1",
        "dockerfile": folder / "Dockerfile",
        "context": folder,
        "files": ["src"],
    }
    return Image(**{**fields, **changes})  # type: ignore[arg-type]


def test_only_listed_files_are_in_the_context(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    (tmp_path / "src" / "__pycache__").mkdir()
    (tmp_path / "src" / "__pycache__" / "a.pyc").write_text("")
    goal = tmp_path / "staged"
    goal.mkdir()
    stage_context(image, goal)
    assert sorted(str(path.relative_to(goal)) for path in goal.rglob("*") if path.is_file()) == [
        "Dockerfile",
        "src/a.py",
    ]


def test_what_is_staged_can_be_read_by_everybody(tmp_path: Path) -> None:
    """As it is after a checkout with a umask of 077, and large files with it, which are else linked."""
    image = make_image(tmp_path)
    (tmp_path / "src" / "b").mkdir(mode=0o700)
    (tmp_path / "src" / "b" / "large").write_bytes(bytes((1 << 24) + 1))
    (tmp_path / "src" / "b" / "run").write_text("#!/bin/sh\n")
    for path, mode in (("a.py", 0o600), ("b/large", 0o600), ("b/run", 0o700)):
        (tmp_path / "src" / path).chmod(mode)
    goal = tmp_path / "staged"
    goal.mkdir()
    before = os.umask(0o077)
    try:
        stage_context(image, goal)
    finally:
        os.umask(before)
    modes = {str(path.relative_to(goal)): path.stat().st_mode & 0o777 for path in goal.rglob("*")}
    assert {name: modes[name] for name in ("src", "src/b", "src/a.py", "src/b/large", "src/b/run")} == {
        "src": 0o755,
        "src/b": 0o755,
        "src/a.py": 0o644,
        "src/b/large": 0o644,
        "src/b/run": 0o755,
    }
    assert (tmp_path / "src" / "b" / "large").stat().st_mode & 0o777 == 0o600


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="wants absent, which is not in"):
        context_files(make_image(tmp_path, files=["absent"]))


def test_key_ignores_what_does_not_go_in(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    before = image_key(image, "base")
    (tmp_path / "unrelated").write_text("changed")
    assert image_key(image, "base") == before


def test_key_sees_every_ingredient(tmp_path: Path) -> None:
    image = make_image(tmp_path)
    keys = [
        image_key(image, "base"),
        image_key(image, "another base"),
        image_key(make_image(tmp_path, build_args={"A": "1"}), "base"),
        image_key(make_image(tmp_path, tag="localhost/thing:2"), "base"),
    ]
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "thing-1-py3-none-any.whl").write_text("")
    keys.append(image_key(make_image(tmp_path, wheels=tmp_path / "wheels"), "base"))
    (tmp_path / "src" / "a.py").chmod(0o755)
    keys.append(image_key(image, "base"))
    (tmp_path / "src" / "a.py").write_text("changed")
    keys.append(image_key(image, "base"))
    (tmp_path / "Dockerfile").write_text("FROM other\n")
    keys.append(image_key(image, "base"))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("tag", ["thing:1", "localhost/thing", "registry.example/thing:1"])
def test_tags_that_lead_to_a_registry_are_refused(tmp_path: Path, tag: str) -> None:
    with pytest.raises(ClusterError, match="use localhost/NAME:VERSION"):
        make_image(tmp_path, tag=tag)


def test_newest_archives_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = make_image(tmp_path)
    archives = [images.archive_path(image, key) for key in ("one", "two", "three")]
    archives[0].parent.mkdir(parents=True)
    for age, archive in enumerate(reversed(archives)):
        archive.write_text("")
        os.utime(archive, (1000 - age, 1000 - age))
    forget_older(archives[-1], image)
    assert [archive.exists() for archive in archives] == [False, True, True]


def test_pip_inside_a_build_is_told_what_pip_outside_is_told(tmp_path: Path) -> None:
    wheels = tmp_path / "my wheels"
    wheels.mkdir()
    environment = {
        "PIP_CERT": "/etc/ssl/certs/ca.crt",
        "PIP_INDEX_URL": "https://index.example/simple",
        "PIP_FIND_LINKS": f"https://links.example {tmp_path}/absent",
    }
    folders = buildah.wheel_folders(environment, wheels)
    assert buildah.wheel_folders({}, None) == []
    parser = configparser.ConfigParser(interpolation=None)  # as pip reads it
    parser.read_string(buildah.pip_conf(environment, folders))
    assert folders == [wheels]
    assert parser["global"]["cert"] == "/etc/ssl/certs/ca.crt"
    assert parser["global"]["index-url"] == "https://index.example/simple"
    assert parser["global"]["find-links"].split() == [
        "https://links.example",
        f"file://{tmp_path}/my%20wheels",
    ]


def test_build_never_asks_a_registry_and_passes_arguments(tmp_path: Path) -> None:
    command = buildah.build_command(
        "localhost/a:1", tmp_path, {"BASE_IMAGE": "localhost/base:1"}, ["/x:/x:ro"]
    )
    assert "--pull-never" in command
    assert "--build-arg=BASE_IMAGE=localhost/base:1" in command
    assert "--volume=/x:/x:ro" in command
    assert command[-1] == str(tmp_path)


def test_base_follows_the_hosts_release() -> None:
    assert release('ID=debian\nVERSION_CODENAME=bookworm\nNAME="Debian"\n') == ("debian", "bookworm")
    with pytest.raises(ClusterError, match="this is fedora without a code name"):
        release("ID=fedora\n")


def test_base_gets_its_packages_from_where_the_host_gets_them_and_through_its_proxy() -> None:
    known = [("http://mirror.example/debian/", "bookworm", "main")]
    command = bootstrap_command("bookworm", Path("/x/root.tar"), known, [Path("/etc/apt/apt.conf.d/5proxy")])
    assert command[-3:] == ["bookworm", "/x/root.tar", "deb http://mirror.example/debian/ bookworm main"]
    assert "--aptopt=/etc/apt/apt.conf.d/5proxy" in command
    assert bootstrap_command("noble", Path("/x/root.tar"), [], [])[-2:] == ["noble", "/x/root.tar"]


def test_base_takes_the_hosts_sources_of_its_own_distribution_only() -> None:
    targets = (
        "http://mirror.example/debian/ bookworm main Debian\n"
        "http://mirror.example/debian/ bookworm main Debian\n"
        "http://mirror.example/security/ bookworm-security main Debian\n"
        "https://vendor.example/apt/ stable main Vendor\n"
        "file:/srv/local ./ main Debian\n"
        "http://unsigned.example/ bookworm main\n"
    )
    assert sources(targets, "debian") == [
        ("http://mirror.example/debian/", "bookworm", "main"),
        ("http://mirror.example/security/", "bookworm-security", "main"),
    ]


@pytest.mark.parametrize(
    ("loaded", "archive", "wanted"),
    [
        pytest.param(["images/app-dev-1.tar"], "images/app-dev-1.tar", True, id="same"),
        pytest.param([], "images/app-dev-1.tar", False, id="nothing-loaded"),
        pytest.param(["images/app-dev-1.tar"], "images/app-dev-2.tar", False, id="new-content"),
        pytest.param(
            ["images/app-dev-1.tar", "images/app-dev-2.tar"],
            "images/app-dev-1.tar",
            False,
            id="tag-taken-over",
        ),
        pytest.param(
            ["images/app-dev-1.tar", "images/db-dev-2.tar"],
            "images/app-dev-1.tar",
            True,
            id="other-tag-later",
        ),
        pytest.param(["elsewhere/app.tar"], "elsewhere/app.tar", False, id="content-not-in-the-name"),
    ],
)
def test_an_archive_that_the_nodes_hold_is_not_loaded_again(
    loaded: list[str], archive: str, wanted: bool
) -> None:
    cache = cache_dir()
    assert images.holds([str(cache / path) for path in loaded], cache / archive) is wanted


class Engine:
    """Stands for Docker and buildah: which base images can be had, and what was built with what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has: list[str] = []
        self.can_download: list[str] = []
        self.built: list[tuple[str, str]] = []
        self.base = baseimage.named("debian", "bookworm")
        images.can_pull.cache_clear()
        monkeypatch.setattr(images, "docker_answers", lambda: True)
        monkeypatch.setattr(baseimage, "planned", lambda: self.base)
        monkeypatch.setattr(baseimage, "ensure", lambda: self.base)
        monkeypatch.setattr(host, "succeeds", lambda command, timeout_s=0: command[-1] in self.has)
        monkeypatch.setattr(host, "run", self.run)
        monkeypatch.setattr(images, "docker_build", partial(self.build, "docker"))
        monkeypatch.setattr(buildah, "build", partial(self.build, "buildah"))

    def run(self, command: list[str], timeout_s: float = 0) -> str:
        assert command[:3] == ["docker", "pull", "--quiet"]
        if command[-1] not in self.can_download:
            raise ClusterError("no such host")
        return ""

    def build(
        self, program: str, tag: str, context: Path, arguments: dict[str, str], archive: Path, *_: object
    ) -> None:
        self.built.append((program, arguments.get("BASE_IMAGE", "")))
        archive.write_text("")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Engine]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield Engine(monkeypatch)
    images.can_pull.cache_clear()


def image_on(folder: Path, dockerfile: str) -> Image:
    image = make_image(folder)
    image.dockerfile.write_text(dockerfile)
    return image


def test_docker_builds_where_it_can_have_the_base(engine: Engine, tmp_path: Path) -> None:
    engine.can_download = ["debian:bookworm-slim"]
    image = image_on(tmp_path, "ARG BASE_IMAGE=debian:bookworm-slim\nFROM ${BASE_IMAGE}\n")
    archive = images.build(image)
    assert images.build(image) == archive
    assert engine.built == [("docker", "")]


def test_without_a_registry_the_stand_in_base_is_built_on(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_on(tmp_path, "ARG BASE_IMAGE=debian:bookworm-slim\nFROM ${BASE_IMAGE}\n")
    archive = images.build(image)
    assert "the base image is bootstrapped here: no such host" in capsys.readouterr().err
    assert engine.built == [("buildah", engine.base.tag)]
    assert images.build(image) == archive
    assert capsys.readouterr().err == ""


def test_docker_needs_no_registry_for_an_image_without_a_base(engine: Engine, tmp_path: Path) -> None:
    image = image_on(tmp_path, "FROM scratch\n")
    images.build(dataclasses.replace(image, base_arg=None))
    assert engine.built == [("docker", "")]
