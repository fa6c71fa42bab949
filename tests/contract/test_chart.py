"""The chart against the operator it installs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from check_manifests import RENDERINGS, documents, helm, render
from stoker_operator.api import labels, parse
from stoker_operator.config import OperatorConfig

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "stoker"
DEPLOYMENT = (CHART / "templates" / "deployment.yaml").read_text()


def test_chart_ships_the_generated_crd() -> None:
    shipped = (CHART / "files" / "modeldeployments.yaml").read_text()
    assert shipped == (REPOSITORY / "crds" / "modeldeployments.yaml").read_text()


def test_crd_stays_when_the_chart_goes() -> None:
    """The template inserts the annotation at the CRD's one top-level `metadata:`."""
    shipped = (CHART / "files" / "modeldeployments.yaml").read_text()
    assert shipped.count("\nmetadata:\n") == 1
    assert "annotations" not in yaml.safe_load(shipped)["metadata"]
    assert "helm.sh/resource-policy: keep" in (CHART / "templates" / "crd.yaml").read_text()


def test_operator_reads_every_variable_the_chart_sets() -> None:
    names = re.findall(r"- name: (STOKER_\w+)", DEPLOYMENT)
    assert len(names) == len(set(names))
    env = {
        "STOKER_RUNTIME_IMAGE": "registry.example/runtime:1",
        "STOKER_WATCH_NAMESPACES": "team-a,team-b",
        "STOKER_ALLOW_FILE_SOURCES": "true",
        "STOKER_CLUSTER_DOMAIN": "example.internal",
        "STOKER_LOG_LEVEL": "warning",
    }
    assert set(names) == set(env)
    assert OperatorConfig.from_env(env) == OperatorConfig(
        runtime_image="registry.example/runtime:1",
        watch_namespaces=("team-a", "team-b"),
        allow_file_sources=True,
        cluster_domain="example.internal",
        log_level="warning",
    )


@pytest.mark.integration  # needs helm, which the test cluster's tools include
@pytest.mark.parametrize("settings", RENDERINGS.values(), ids=RENDERINGS.keys())
def test_no_role_has_a_wildcard_or_reads_secrets(settings: tuple[str, ...]) -> None:
    manifests = list(documents(render(helm(), settings)))
    roles = [found for found in manifests if found["kind"] in ("Role", "ClusterRole")]
    rules = [rule for role in roles for rule in role["rules"]]
    assert len(roles) >= 2
    assert all(rule["apiGroups"] and rule["resources"] and rule["verbs"] for rule in rules)
    named = [entry for rule in rules for entries in rule.values() for entry in entries]
    assert [entry for entry in named if "*" in entry] == []
    kinds = {kind.partition("/")[0] for rule in rules for kind in rule["resources"]}
    assert "modeldeployments" in kinds
    assert "secrets" not in kinds


@pytest.mark.parametrize("file", ["podmonitors.yaml", "servicemonitors.yaml"])
def test_runtime_monitor_selects_what_the_operator_makes(file: str) -> None:
    monitors = (CHART / "templates" / file).read_text()
    assert f"- port: {labels.HTTP_PORT}\n" in monitors
    assert f"podTargetLabels: [{labels.DEPLOYMENT}, {labels.REVISION}]" in monitors
    assert "app.kubernetes.io/name: stoker-runtime\n" in monitors


def test_example_in_the_notes_is_a_valid_modeldeployment() -> None:
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    text = notes.split("<<YAML\n")[1].split("    YAML\n")[0]
    example = yaml.safe_load(re.sub(r"\{\{.*?\}\}", "default", text))
    model = parse(example | {"metadata": example["metadata"] | {"uid": "u", "generation": 1}})
    assert model.spec.model.source == "hf://Qwen/Qwen3-8B"
