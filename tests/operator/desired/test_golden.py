"""What each kind of ModelDeployment becomes, as files a person can read; `make golden` rewrites them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from golden_cases import CASES, CONFIG, CONFIGS
from operator_builders import make_wanted, service_of, shape_of

from stoker_operator.config import OperatorConfig
from stoker_operator.desired.children import BUDGET
from stoker_operator.desired.shape import member

GOLDEN = Path(__file__).parent.parent / "golden"


class Dumper(yaml.SafeDumper):
    """Writes what stands twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def manifests(spec: dict[str, Any], config: OperatorConfig = CONFIG) -> list[dict[str, Any]]:
    wanted = make_wanted(config, **spec)
    pod = member(shape_of(wanted), 0, f"{wanted.model.name}-{wanted.revision}-0", wanted.revision)
    budget = wanted.child(BUDGET)
    return [pod, service_of(wanted), *([budget] if budget else [])]


@pytest.mark.parametrize("name", CASES)
def test_children_are_as_the_golden_file_says(name: str) -> None:
    found = manifests(CASES[name], CONFIGS.get(name, CONFIG))
    text = yaml.dump_all(found, Dumper=Dumper, sort_keys=False, width=110)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("STOKER_WRITE_GOLDEN"):
        file.write_text(text)
    assert file.read_text() == text, "if the change is meant, run `make golden` and look at the diff"


def test_runtime_class_reaches_the_pod() -> None:
    assert manifests({"pod": {"runtimeClassName": "nvidia"}})[0]["spec"]["runtimeClassName"] == "nvidia"


def test_every_golden_file_has_its_case() -> None:
    assert {file.stem for file in GOLDEN.glob("*.yaml")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_children_fit_the_schema_of_kubernetes(name: str) -> None:
    for manifest in manifests(CASES[name], CONFIGS.get(name, CONFIG)):
        kubernetes_validate.validate(manifest, "1.37", strict=True)
