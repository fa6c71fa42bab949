"""The documentation names what the code has: flags, endpoints, metrics, reasons; its links lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stoker_operator.metrics import Metrics as OperatorMetrics
from stoker_operator.plan.departures import SIGNS
from stoker_operator.status.causes import STALLING
from stoker_runtime import __main__ as runtime
from stoker_runtime.messages import EngineStats
from stoker_runtime.server import app as server_app
from stoker_runtime.server.metrics import Metrics as RuntimeMetrics

REPOSITORY = Path(__file__).resolve().parents[2]
RUNTIME = (REPOSITORY / "docs" / "runtime.md").read_text()
OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text()
PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "bench/*.md", "e2e/**/*.md")
    for path in sorted(REPOSITORY.glob(pattern))
]


def metric_names(text: str) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))


def reasons() -> Iterator[str]:
    """Yield every reason that the operator's status code can write: first arguments of `Cause(...)`."""
    for path in (REPOSITORY / "operator/stoker_operator/status").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Cause":
                yield from (
                    part.value
                    for part in ast.walk(node.args[0])
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )
    yield from STALLING


@pytest.mark.parametrize("command", sorted(runtime.cli.commands))
def test_runtime_page_names_every_flag(command: str) -> None:
    flags = {flag for param in runtime.cli.commands[command].params for flag in param.opts}
    assert "--log-level" in flags
    assert {flag for flag in flags if f"`{flag}`" not in RUNTIME} == set()


def test_every_flag_has_help() -> None:
    for name, command in runtime.cli.commands.items():
        for param in command.params:
            assert isinstance(param, click.Option)
            assert param.help, f"{name} {param.opts}"


def test_runtime_page_names_every_endpoint_and_no_other() -> None:
    source = Path(server_app.__file__).read_text()
    paths = set(re.findall(r"router\.(?:get|post)\(\"([^\"]+)\"", source))
    openai = set(re.findall(r"@router\.\w+\(\"(/models|/completions|/chat/completions)\"", source))
    assert openai == {"/models", "/completions", "/chat/completions"}
    wanted = {f"/v1{path}" if path in openai else path for path in paths if "{" not in path}
    section = RUNTIME.split("## Endpoints")[1].split("\nBesides")[0]
    assert set(re.findall(r"`(/[^`]+)`", section)) == wanted


def test_runtime_page_names_every_metric_and_no_other() -> None:
    exported = metric_names(RuntimeMetrics("m", EngineStats, lambda: None).render().decode())
    section = RUNTIME.split("## Metrics")[1]
    assert set(re.findall(r"`((?:vllm:|http_|process_)\w+)`", section)) == exported


def test_operations_page_names_every_sign_of_a_leaving_node() -> None:
    section = OPERATIONS.split("### Nodes that leave")[1].split("\n\nThe operator's log")[0]
    assert {sign.key for sign in SIGNS if f"`{sign.key}`" not in section} == set()


def test_operations_page_names_every_metric_and_no_other() -> None:
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    metrics.watch_queue(lambda: 0, lambda: 0)
    metrics.watch_leadership(lambda: True)
    metrics.watch_stores({"pods": lambda: 0})
    metrics.watch_scopes([])
    exported = metric_names(generate_latest(registry).decode())
    exported = {name for name in exported if not name.endswith("_created")}
    assert set(re.findall(r"`(stoker_operator_\w+)", OPERATIONS)) == exported


def test_operations_page_names_every_reason() -> None:
    found = set(reasons())
    assert len(found) > 20
    assert {reason for reason in found if f"`{reason}`" not in OPERATIONS} == set()


def test_operations_page_invents_no_reason() -> None:
    table = OPERATIONS.split("### Reasons")[1].split("`Scheduled` is also")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named - set(reasons()) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_readme_names_existing_make_targets() -> None:
    """Also in CONTRIBUTING and the pages: a command that does not exist is worse than none."""
    targets = set(re.findall(r"^([a-z-]+):.*##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for line in re.findall(r"(?:`|^ {4})make ([a-z -]+?)(?:`|\s+#|$)", page.read_text(), re.MULTILINE):
            assert set(line.split()) <= targets, f"{page.name}: make {line}"
