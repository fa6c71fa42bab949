"""What the demo reads from a status, and when it gives up."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any, cast

import pytest

import demo
import product
from cluster import kind, native, prerequisites
from cluster.api import Cluster, ClusterError
from cluster.kind import KindCluster
from demo import Progress, changes, progress_of


def mdep(*conditions: tuple[str, str, str], generation: int = 2, observed: int = 2) -> dict[str, Any]:
    return {
        "metadata": {"generation": generation},
        "status": {
            "conditions": [
                {
                    "type": type_,
                    "status": status,
                    "reason": reason,
                    "message": "m",
                    "observedGeneration": observed,
                }
                for type_, status, reason in conditions
            ]
        },
    }


@pytest.mark.parametrize(
    ("object_", "wanted"),
    [
        pytest.param(
            {"metadata": {"generation": 1}},
            Progress(False, False, "Pending", "waiting for the operator"),
            id="no-status-yet",
        ),
        pytest.param(
            mdep(("Ready", "True", "Ready"), observed=1),
            Progress(False, False, "Pending", "waiting for the operator"),
            id="older-generation",
        ),
        pytest.param(
            mdep(("Ready", "False", "LoadingModel"), ("Stalled", "False", "AsExpected")),
            Progress(False, False, "LoadingModel", "m"),
            id="loading",
        ),
        pytest.param(
            mdep(("Ready", "False", "ModelNotFound"), ("Stalled", "True", "ModelNotFound")),
            Progress(False, True, "ModelNotFound", "m"),
            id="stalled",
        ),
        pytest.param(mdep(("Ready", "True", "Ready")), Progress(True, False, "Ready", "m"), id="ready"),
    ],
)
def test_progress_is_read_from_conditions_of_this_generation(
    object_: dict[str, Any], wanted: Progress
) -> None:
    assert progress_of(object_) == wanted


def test_a_release_that_a_killed_helm_left_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KindCluster, "tool", lambda self, name: name)
    cluster = KindCluster("demo")
    said = "Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress"
    assert "`make demo-down`. Then `{again}`" in product.after_helm(said, cluster)
    assert "get pods,events --namespace=stoker-system`, then" in product.after_helm("timed out", cluster)


LOADING = Progress(False, False, "LoadingModel", "pod a")
STALLED = Progress(False, True, "InvalidModel", "file x is cut")
READY = Progress(True, False, "Ready", "1 of 1")


def test_each_change_is_told_once_and_ready_ends_it() -> None:
    seen = iter([LOADING, LOADING, STALLED, LOADING, READY])
    assert list(changes(lambda: next(seen), clock=lambda: 0.0)) == [LOADING, STALLED, LOADING, READY]


@pytest.mark.parametrize(
    ("progress", "limit_s"),
    [
        pytest.param(LOADING, demo.READY_TIMEOUT_S, id="slow"),
        pytest.param(STALLED, demo.STALLED_TIMEOUT_S, id="stalled"),
    ],
)
def test_giving_up_names_the_cause(progress: Progress, limit_s: float) -> None:
    seconds = itertools.count(0.0, 0.5)
    told = changes(lambda: progress, clock=lambda: next(seconds))
    assert next(told) == progress
    with pytest.raises(ClusterError, match=f"{progress.reason}: {progress.message}"):
        next(told)
    assert next(seconds) == pytest.approx(limit_s, abs=2.0)


class Preparing:
    """A cluster that is prepared only while images are built, and images that are built only meanwhile."""

    def __init__(self, problem: ClusterError | None = None) -> None:
        self.is_preparing, self.is_building = threading.Event(), threading.Event()
        self.problem = problem

    def prepare(self) -> None:
        self.is_preparing.set()
        assert self.is_building.wait(10)
        if self.problem:
            raise self.problem

    def build_images(self) -> dict[str, Path]:
        self.is_building.set()
        assert self.is_preparing.wait(10)
        return {"localhost/a:1": Path("a.tar")}


def test_images_are_built_beside_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Preparing()
    monkeypatch.setattr(product, "build_images", cluster.build_images)
    assert product.prepare(cast(Cluster, cluster)) == {"localhost/a:1": Path("a.tar")}


def test_a_cluster_that_cannot_be_prepared_is_told_after_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Preparing(ClusterError("no Go"))
    monkeypatch.setattr(product, "build_images", cluster.build_images)
    with pytest.raises(ClusterError, match="no Go"):
        product.prepare(cast(Cluster, cluster))


def test_the_cluster_that_is_there_goes_whichever_back_end_is_chosen_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    downs: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native.NativeCluster, "down", lambda self: downs.append("native"))
    monkeypatch.setattr(kind.KindCluster, "down", lambda self: downs.append("kind"))
    monkeypatch.setattr(demo, "NAME", "nobodys")
    assert demo.down.main([], standalone_mode=False) is None
    assert downs == []
    folder = kind.KindCluster("nobodys").folder
    folder.mkdir(parents=True)
    monkeypatch.setattr(prerequisites, "kind_lacks", lambda: "no Docker engine answers")
    demo.down.main([], standalone_mode=False)
    assert downs == ["kind"]
    monkeypatch.setattr(prerequisites, "native_lacks", lambda: None)
    with pytest.raises(ClusterError, match="other back end"):
        demo.up.main([], standalone_mode=False)
