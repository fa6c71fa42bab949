"""The pod of another engine than Stoker's, made up here: what it needs comes from its profile alone."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
from operator_builders import CONFIG, make_wanted

from stoker_operator.api import ModelDeployment, labels
from stoker_operator.config import OperatorConfig, PodDefaults
from stoker_operator.desired.pod import pod_template
from stoker_operator.profiles import (
    TMP,
    EngineContainer,
    EngineProfile,
    LoadPage,
    MountedModel,
    Probe,
    Scratch,
)

HTTP, METRICS = 9000, 9002
HOME = Scratch("stoker-home", "/home/engine")
COMPILED = Scratch("stoker-compiled", "/var/lib/compiled", medium="Memory")


def container(model: ModelDeployment, mounted: MountedModel) -> EngineContainer:
    answers = Probe("/v2/health", period_s=5, failure_threshold=6, timeout_s=3)
    return EngineContainer(
        command=("python3", "-m", "other.server"),
        args=(mounted.path, "--name", model.name),
        env=({"name": "HOME", "value": HOME.path}, {"name": "USER", "value": "engine"}),
        ports={labels.HTTP_PORT: HTTP, "metrics": METRICS},
        startup=Probe("/v2/started", period_s=10, failure_threshold=600, timeout_s=3),
        readiness=answers,
        liveness=answers,
        scratch=(HOME, COMPILED),
        user_id=1000,
        group_id=1001,
        has_writable_root=True,
    )


OTHER = EngineProfile(
    name="other",
    container=container,
    load=LoadPage(port=METRICS, path="/metrics", read=len),
    read_termination=lambda message: None,
)


def template(config: OperatorConfig = CONFIG, **spec: Any) -> dict[str, Any]:
    return pod_template(make_wanted(config, **spec).model, config, OTHER)


def engine(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["spec"]["containers"]
    return dict(found)


def ids(pod: dict[str, Any]) -> dict[str, int]:
    context = pod["spec"]["securityContext"]
    return {name: context[name] for name in ("runAsUser", "runAsGroup", "fsGroup") if name in context}


def test_it_has_its_own_command_ports_and_probes() -> None:
    found = engine(template(model={"source": "pvc://models/qwen3"}))
    assert found["command"] == ["python3", "-m", "other.server"]
    assert found["args"] == ["/model/qwen3", "--name", "smol"]
    assert found["ports"] == [
        {"name": "http", "containerPort": HTTP, "protocol": "TCP"},
        {"name": "metrics", "containerPort": METRICS, "protocol": "TCP"},
    ]
    assert found["startupProbe"] == {
        "httpGet": {"path": "/v2/started", "port": "http"},
        "periodSeconds": 10,
        "failureThreshold": 600,
        "timeoutSeconds": 3,
    }
    assert found["livenessProbe"] == found["readinessProbe"]


def test_it_has_nothing_of_stokers_engine() -> None:
    pod = template()
    assert pod["metadata"]["labels"][labels.ENGINE_PROFILE] == "other"
    assert [variable["name"] for variable in engine(pod)["env"]] == ["HOME", "USER"]
    paths = {mount["mountPath"] for mount in engine(pod)["volumeMounts"]}
    assert paths == {"/cache", HOME.path, COMPILED.path}


def test_it_writes_where_it_has_to_as_the_user_of_its_image() -> None:
    pod = template(pod={"volumes": [{"name": "own", "emptyDir": {}}]})
    assert engine(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": False,
    }
    assert ids(pod) == {"runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 1001}
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert {"name": HOME.name, "emptyDir": {}} in pod["spec"]["volumes"]
    assert {"name": COMPILED.name, "emptyDir": {"medium": "Memory"}} in pod["spec"]["volumes"]
    assert {"name": "own", "emptyDir": {}} in pod["spec"]["volumes"]


def test_the_download_needs_nothing_of_the_engine() -> None:
    """It runs the operator's own image, whatever the engine's is, with a read-only root and a /tmp."""
    pod = template(pod={"image": "registry.example/other:1"})
    (fetch,) = pod["spec"]["initContainers"]
    assert (engine(pod)["image"], fetch["image"]) == ("registry.example/other:1", CONFIG.runtime_image)
    assert fetch["args"][0] == "fetch"
    assert "command" not in fetch
    assert fetch["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"name": TMP.name, "mountPath": TMP.path} in fetch["volumeMounts"]
    assert pod["spec"]["volumes"].count({"name": TMP.name, "emptyDir": {}}) == 1


def test_what_a_model_and_a_platform_say_wins_over_its_user() -> None:
    assert ids(template(pod={"securityContext": {"runAsUser": 2000}}))["runAsUser"] == 2000
    assigned = OperatorConfig(runtime_image="r", pod_defaults=PodDefaults(has_assigned_user=True))
    assert ids(template(assigned)) == {}


@pytest.mark.parametrize("source", ["hf://org/name", "s3://bucket/name", "pvc://claim", "oci://image:1"])
def test_it_fits_the_schema_of_kubernetes(source: str) -> None:
    pod = template(model={"source": source})
    pod["metadata"]["name"] = "other-0"
    kubernetes_validate.validate(pod, "1.37", strict=True)


def test_an_engine_without_an_http_port_is_no_profile() -> None:
    """The Service sends requests to the port of that name."""
    answers = Probe("/", period_s=1, failure_threshold=1, timeout_s=1)
    with pytest.raises(ValueError, match="http"):
        EngineContainer(
            ports={"grpc": 1}, startup=answers, readiness=answers, liveness=answers, user_id=1, group_id=1
        )
