"""Rules of the code base that no linter knows: sizes, places, one version."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import stoker_operator
import stoker_runtime

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_FUNCTION_LINES = 70
MAX_SOURCE_LINES = 400
MAX_TEST_LINES = 700


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for name in listed.stdout.split("\0") if name and (path := REPOSITORY / name).is_file()]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield (
                f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}",
                node.end_lineno - node.lineno + 1,
            )


def test_functions_fit_on_a_screen() -> None:
    found = [item for path in tracked("*.py") for item in functions(path)]
    assert len(found) > 100
    assert [item for item in found if item[1] > MAX_FUNCTION_LINES] == []


def test_files_stay_small() -> None:
    def limit(path: Path) -> int:
        return MAX_TEST_LINES if path.is_relative_to(REPOSITORY / "tests") else MAX_SOURCE_LINES

    sizes = {path: len(path.read_text().splitlines()) for path in tracked("*.py")}
    too_long = {str(path.relative_to(REPOSITORY)): size for path, size in sizes.items() if size > limit(path)}
    assert too_long == {}


def test_the_operator_folder_is_no_package() -> None:
    """A package of that name would shadow the standard library's `operator`."""
    assert not (REPOSITORY / "operator" / "__init__.py").exists()


def test_test_folders_are_no_packages() -> None:
    assert [str(path) for path in tracked("tests/**/__init__.py", "tests/__init__.py")] == []


def test_one_version_everywhere() -> None:
    chart = yaml.safe_load((REPOSITORY / "charts/stoker/Chart.yaml").read_text())
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None, "CHANGELOG.md has no `## X.Y.Z` heading"
    versions = {
        "operator": stoker_operator.__version__,
        "runtime": stoker_runtime.__version__,
        "chart": chart["version"],
        "appVersion": chart["appVersion"],
        "changelog": newest[1],
    }
    assert set(versions.values()) == {stoker_runtime.__version__}, versions


def test_wheel_holds_both_packages() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["operator/stoker_operator", "runtime/stoker_runtime"]


@pytest.mark.parametrize("name", ["operator", "runtime"])
def test_image_requirements_are_pinned_by_hash(name: str) -> None:
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text()
    pins = re.findall(r"^([a-z0-9._-]+)==\S+ \\\n    --hash=sha256:", text, re.MULTILINE)
    assert pins == re.findall(r"^([a-z0-9._-]+)==", text, re.MULTILINE)
    assert "torch" not in pins


def test_operator_image_has_no_torch() -> None:
    """torch would come in through the requirements or by name; both ways are closed."""
    requirements = (REPOSITORY / "requirements" / "operator.txt").read_text()
    dockerfile = (REPOSITORY / "Dockerfile.operator").read_text()
    assert re.findall(r"^torch", requirements, re.MULTILINE) == []
    assert "torch.in" not in dockerfile
    assert "requirements/runtime.txt" not in dockerfile


def test_chart_values_have_a_schema() -> None:
    """Every value is typed, so a typing error in a values file is refused instead of ignored."""
    values = yaml.safe_load((REPOSITORY / "charts/stoker/values.yaml").read_text())
    schema = json.loads((REPOSITORY / "charts/stoker/values.schema.json").read_text())
    assert schema["additionalProperties"] is False
    assert set(values) == set(schema["properties"])
