"""How long the demo says it will take, by what an earlier run left."""

from __future__ import annotations

from pathlib import Path

import pytest

import forecast
import needs
from cluster import baseimage, build, images, ledger, packages, progress
from cluster.progress import CACHED, Record
from cluster.versions import load_tools, tools_of
from forecast import Part


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    record = Record()
    for module in (progress, ledger):
        monkeypatch.setattr(module, "RECORD", record)
    return record


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_every_part_of_a_first_run_has_its_time() -> None:
    tools = {tool.name for tool in tools_of("e2e", load_tools())}
    assert tools == set(needs.TOOLS_S)
    assert set(needs.IMAGES_S) >= {"stoker-operator", "stoker-runtime", "smollm2"}


def test_an_empty_cache_is_told_part_by_part(empty_cache: Path) -> None:
    parts = forecast.parts(with_kind=False, with_docker=True)
    assert [part.title for part in parts if part.is_ready] == []
    said = forecast.text(parts)
    assert f"compile kube {needs.duration(needs.TOOLS_S['kube'])}" in said
    assert f"image stoker-runtime {needs.duration(needs.IMAGES_S['stoker-runtime'])}" in said
    total = sum(part.seconds for part in parts) + needs.DEMO_S
    assert said.startswith(f"It takes about {needs.duration(total)} on 2 quiet cores")
    assert list(empty_cache.iterdir()) == []


def test_without_docker_packages_and_a_base_image_are_parts(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "missing", list)
    base = baseimage.BaseImage("localhost/stoker-base:x", "key")
    monkeypatch.setattr(baseimage, "wanted", lambda: (base, "debian", "x"))
    titles = [part.title for part in forecast.parts(with_kind=True, with_docker=False)]
    assert {"packages of the distribution", "base image"} <= set(titles)


def test_kind_needs_only_the_clients_that_are_not_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == "helm" else f"/bin/{name}")
    assert forecast.stages(with_kind=True) == ["charts"]
    assert forecast.stages(with_kind=False) == ["e2e"]


def test_what_is_ready_takes_no_time_and_is_in_the_ledger(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "is_built", lambda tools: True)
    monkeypatch.setattr(images, "built", lambda image: tmp_path)
    parts = forecast.parts(with_kind=True, with_docker=True)
    forecast.announce(parts)
    assert capsys.readouterr().err == f"Everything is built; it takes about {needs.duration(needs.DEMO_S)}.\n"
    assert "image stoker-runtime" in [e.title for e in record.entries() if e.outcome == CACHED]


def test_the_forecast_and_the_table_agree() -> None:
    """A first run on kind makes the images, one without Docker all there is; within a quarter."""
    (cold_native,) = (need.cold_min for need in needs.NEEDS if need.cluster == needs.NATIVE)
    made = needs.PACKAGES_S + needs.BASE_IMAGE_S + sum(needs.TOOLS_S.values()) + sum(needs.IMAGES_S.values())
    told_min = (needs.DEMO_INSTALL_S + made + needs.DEMO_S) / 60
    assert told_min == pytest.approx(cold_native, rel=0.25)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (7, "7 s"), (61, "60 s"), (150, "2 min"), (1800, "30 min"), (7200, "2.0 h")],
)
def test_times_are_told_no_more_exactly_than_they_are_known(seconds: float, words: str) -> None:
    assert needs.duration(seconds) == words


def test_one_missing_part_is_named() -> None:
    said = forecast.text([Part("compile a", 600, True), Part("image b", 65, False)])
    assert said == "It takes about 2 min on 2 quiet cores, once: image b 65 s; 55 s the rest."
