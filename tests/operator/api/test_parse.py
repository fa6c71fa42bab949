"""From the stored object to a ModelDeployment, or to the field at fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from operator_builders import CONFIG, make_model, make_wanted, shape_of, wanted_of

from stoker_operator.api import InvalidSpec, parse
from stoker_operator.config import ConfigError, OperatorConfig
from stoker_operator.plan.drift import drift

BAD: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "bad_modeldeployments.yaml").read_text()
)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        pytest.param({"model": {}}, "spec.model.source", id="missing"),
        pytest.param({"engine": {"dtype": "int3"}}, "spec.engine.dtype", id="not-allowed"),
        pytest.param({"engine": {"quantization": "int4"}}, "spec.engine.quantization", id="no-such-way"),
        pytest.param({"engine": {"speed": 11}}, "spec.engine.speed", id="unknown"),
        pytest.param({"replicas": -1}, "spec.replicas", id="out-of-range"),
    ],
)
def test_field_at_fault_is_named(spec: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidSpec) as error:
        parse(make_model(**spec))
    assert error.value.path == path


def test_file_source_needs_the_operators_permission() -> None:
    spec: dict[str, Any] = {"model": {"source": "file:///models/qwen3"}}
    with pytest.raises(InvalidSpec, match="file:// is not allowed here"):
        make_wanted(**spec)
    allowed = OperatorConfig(runtime_image="r", allow_file_sources=True)
    wanted = wanted_of(make_model(**spec), allowed)
    assert shape_of(wanted).leader["spec"]["volumes"][0]["hostPath"]


def test_bad_modeldeployments_have_names_of_their_own_and_say_where() -> None:
    assert len({entry["name"] for entry in BAD}) == len(BAD) >= 30
    assert {entry["where"] for entry in BAD} == {"apply", "condition"}
    assert all(entry["message"] for entry in BAD)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        pytest.param({"replicas": 7}, True, id="replicas"),
        pytest.param({"rollout": {"maxSurge": 3}}, True, id="rollout"),
        pytest.param({"service": {"port": 8080}}, True, id="service"),
        pytest.param({"suspend": True}, True, id="suspend"),
        pytest.param({"engine": {"dtype": "auto"}}, True, id="a-default-spelt-out"),
        pytest.param({"engine": {"maxModelLen": 512}}, False, id="engine"),
        pytest.param({"pod": {"image": "registry.example/runtime:2"}}, False, id="image"),
        pytest.param({"scheduling": {"nodeSelector": {"gpu": "h100"}}}, False, id="scheduling"),
    ],
)
def test_revision_follows_what_was_asked_of_the_pods(change: dict[str, Any], is_same: bool) -> None:
    assert (make_wanted(**change).revision == make_wanted().revision) is is_same


def test_operator_settings_do_not_change_the_revision() -> None:
    other = OperatorConfig(runtime_image="registry.example/stoker-runtime:2", cluster_domain="example")
    assert wanted_of(make_model(), other).revision == make_wanted().revision
    # Pinned: another hash would restart every pod of every cluster on an upgrade of the operator.
    assert make_wanted().revision == "b3a486af"


def test_drift_sees_what_is_missing_and_what_differs_but_not_what_was_added() -> None:
    wanted = {"a": {"b": 1}, "ports": [{"name": "http", "port": 80}], "gone": "x", "list": ["p", "q"]}
    observed = {"a": {"b": 2, "c": 3}, "ports": [{"name": "x"}, {"name": "http", "port": 80}], "list": ["p"]}
    assert drift(wanted, observed) == ["a.b", "gone", "list[1]"]
    assert drift(wanted, {**wanted, "more": 1}) == []


def test_settings_come_from_the_environment() -> None:
    env = {
        "STOKER_RUNTIME_IMAGE": "registry.example/runtime:1",
        "STOKER_WATCH_NAMESPACES": "team-a, team-b,",
        "STOKER_ALLOW_FILE_SOURCES": "True",
        "STOKER_CLUSTER_DOMAIN": "example.internal",
        "STOKER_LOG_LEVEL": "DEBUG",
    }
    assert OperatorConfig.from_env(env) == OperatorConfig(
        runtime_image="registry.example/runtime:1",
        watch_namespaces=("team-a", "team-b"),
        allow_file_sources=True,
        cluster_domain="example.internal",
        log_level="debug",
    )
    assert OperatorConfig.from_env({"STOKER_RUNTIME_IMAGE": CONFIG.runtime_image}) == CONFIG


@pytest.mark.parametrize(
    ("env", "variable"),
    [
        pytest.param({}, "STOKER_RUNTIME_IMAGE", id="no-image"),
        pytest.param({"STOKER_ALLOW_FILE_SOURCES": "perhaps"}, "STOKER_ALLOW_FILE_SOURCES", id="no-boolean"),
        pytest.param({"STOKER_LOG_LEVEL": "loud"}, "STOKER_LOG_LEVEL", id="no-level"),
    ],
)
def test_wrong_setting_is_named(env: dict[str, str], variable: str) -> None:
    image = {} if variable == "STOKER_RUNTIME_IMAGE" else {"STOKER_RUNTIME_IMAGE": "r"}
    with pytest.raises(ConfigError, match=variable):
        OperatorConfig.from_env({**image, **env})
