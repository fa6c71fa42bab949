"""The check of manifests finds what an API server would refuse."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

import check_manifests
from check_manifests import CRD, PAGES, check, closed, documents, modeldeployment_schema, snippets
from cluster import build
from cluster.api import ClusterError

SCHEMA = modeldeployment_schema(yaml.safe_load(CRD.read_text()))


def modeldeployment(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "stoker.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "m"},
        "spec": {"model": {"source": "hf://org/name"}} | spec,
    }


def pod(**container: Any) -> dict[str, Any]:
    containers = [{"name": "c", "image": "i"} | container]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}}


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        pytest.param(modeldeployment(), None, id="good-modeldeployment"),
        pytest.param(modeldeployment(replicas="two"), "spec.replicas", id="wrong-type"),
        pytest.param(modeldeployment(replica=2), "'replica' was unexpected", id="unknown-field"),
        pytest.param(modeldeployment(engine={"dtype": "int3"}), "spec.engine.dtype", id="not-in-the-enum"),
        pytest.param(modeldeployment(scheduling={"affinity": {"nodeAffinity": {}}}), None, id="open-field"),
        pytest.param(pod(), None, id="good-pod"),
        pytest.param(pod(imagePullPolice="Always"), "imagePullPolice", id="unknown-pod-field"),
        pytest.param({"apiVersion": "v9", "kind": "Pod"}, "Couldn't find schema", id="unknown-version"),
        pytest.param({"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor"}, None, id="foreign"),
    ],
)
def test_problems_name_the_field(manifest: dict[str, Any], problem: str | None) -> None:
    found = check(manifest, SCHEMA)
    if problem is None:
        assert found is None
    else:
        assert found is not None
        assert problem in found


def test_closing_a_schema_leaves_maps_open() -> None:
    schema = {"type": "object", "properties": {"labels": {"type": "object", "additionalProperties": {}}}}
    assert closed(schema) == {
        "type": "object",
        "additionalProperties": False,
        "properties": {"labels": {"type": "object", "additionalProperties": {}}},
    }


def test_empty_documents_are_skipped() -> None:
    assert list(documents("---\n---\na: 1\n---\n# nothing\n")) == [{"a": 1}]


def test_blocks_of_a_page_are_found_with_their_lines() -> None:
    page = "# Page\n\n```yaml\na: 1\n```\n\n```\nno: yaml\n```\n\n```yaml\n---\nb: 2\nc: 3\n```\n"
    assert list(snippets(page)) == [(4, "a: 1\n"), (12, "---\nb: 2\nc: 3\n")]


def test_every_yaml_block_of_the_documentation_is_looked_at() -> None:
    """A block that is fenced otherwise would be overlooked."""
    blocks = {page.name: len(list(snippets(page.read_text()))) for page in PAGES}
    fences = {
        page.name: page.read_text().count("```yaml") + page.read_text().count("```yml") for page in PAGES
    }
    assert blocks == fences
    assert blocks["README.md"] >= 1
    assert blocks["clusters.md"] >= 7


def test_a_helm_that_has_to_be_compiled_is_announced_with_its_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ensure(stage: str) -> build.Binaries:
        raise ClusterError("Go 1.26 or newer must build kube; none is on PATH.")

    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(build, "is_built", lambda tools: False)
    monkeypatch.setattr(build, "ensure", ensure)
    monkeypatch.setenv("STOKER_COMMAND", "make lint")
    assert check_manifests.main() == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("There is no helm on PATH")
    assert "about 6 min" in said[0]
    assert said[-1].startswith("Next: put a newer Go on PATH")
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    assert check_manifests.helm() == "/bin/helm"
    assert capsys.readouterr().err == ""
