"""Fixtures of the scenarios: one cluster, brought up with the first test that asks for it."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

import product
from scenarios import clientpod, diagnosis
from scenarios import shelf as shelves
from scenarios.clientpod import ClientPod
from scenarios.kube import Kube
from scenarios.platform import Platform, installed, temporary_namespace
from scenarios.shelf import Shelf

CLUSTER_NAME = "e2e"
FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> list[str]:
    """Lines to show at the end of the run, also when everything passed."""
    return pytestconfig.stash.setdefault(FIGURES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured."""
    lines = config.stash.get(FIGURES, [])
    if lines:
        terminalreporter.section("figures")
    for line in lines:
        terminalreporter.line(line)


@pytest.fixture(scope="session")
def platform(figures: list[str]) -> Iterator[Platform]:
    """A cluster with Stoker installed from its chart."""
    with installed(CLUSTER_NAME) as running:
        figures.append(f"cluster up in {running.up_s:.1f} s")
        yield running


@pytest.fixture(scope="session")
def kube(platform: Platform) -> Kube:
    return platform.kube


@pytest.fixture(scope="module")
def namespace(kube: Kube) -> Iterator[str]:
    """A namespace for the tests of one file; its pods must be restricted ones."""
    with temporary_namespace(kube, "e2e") as name:
        yield name


@pytest.fixture(scope="session")
def clients(kube: Kube) -> Iterator[ClientPod]:
    """A pod to send requests from."""
    with temporary_namespace(kube, "clients") as name:
        yield clientpod.start(kube, name, product.OPERATOR_IMAGE)


@pytest.fixture(scope="session")
def shelf(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """A tiny model on a hub and in a folder of a node."""
    with temporary_namespace(platform.kube, "shelf", pod_security="privileged") as name:
        yield shelves.start(platform, name, product.OPERATOR_IMAGE, tmp_path_factory.mktemp("tiny"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the cluster looks like to the report of a failed scenario."""
    report = yield
    running = getattr(item, "funcargs", {}).get("platform") or getattr(item, "funcargs", {}).get("kube")
    # In a teardown the cluster, or the way to it, may be gone already.
    if report.failed and call.when != "teardown" and running is not None:
        api = running.kube if isinstance(running, Platform) else running
        for title, text in diagnosis.sections(api):
            report.sections.append((title, text))
    return report
