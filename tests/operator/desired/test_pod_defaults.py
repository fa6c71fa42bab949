"""The operator's defaults of runtime pods: what a ModelDeployment says wins, and no pod restarts for them."""

from __future__ import annotations

from typing import Any

import pytest
from operator_builders import CONFIG, make_wanted, shape_of

from stoker_operator.config import CaBundle, ConfigError, OperatorConfig, PodDefaults

HUB = {"source": "hf://org/name"}
IMAGE = {"source": "oci://registry.example/model:1"}


def config(**defaults: Any) -> OperatorConfig:
    return OperatorConfig(runtime_image=CONFIG.runtime_image, pod_defaults=PodDefaults(**defaults))


def pod_spec(settings: OperatorConfig, **spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = shape_of(make_wanted(settings, **spec)).leader["spec"]
    return found


def variables(container: dict[str, Any]) -> dict[str, str]:
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names))
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


EVERYTHING = config(
    image_pull_policy="Always",
    image_pull_secrets=("pull",),
    env={"HF_ENDPOINT": "https://hub.example"},
    ca_bundle=CaBundle(config_map="trusted", key="ca.pem"),
    has_assigned_user=True,
)


def test_defaults_are_no_part_of_the_revision() -> None:
    plain, with_defaults = make_wanted(CONFIG, model=HUB), make_wanted(EVERYTHING, model=HUB)
    assert plain.shape != with_defaults.shape
    assert plain.revision == with_defaults.revision


def test_environment_reaches_all_containers_and_what_a_model_says_wins() -> None:
    settings = config(env={"HF_ENDPOINT": "https://hub.example", "NO_PROXY": ".svc"})
    asked = {"env": [{"name": "HF_ENDPOINT", "value": "https://other.example"}]}
    spec = pod_spec(settings, model=HUB, pod=asked)
    for container in (*spec["initContainers"], *spec["containers"]):
        found = variables(container)
        assert found["HF_ENDPOINT"] == "https://other.example"
        assert found["NO_PROXY"] == ".svc"


def test_a_variable_may_refer_to_a_default() -> None:
    """Kubernetes replaces $(NAME) by what stands before it."""
    settings = config(env={"MIRROR": "https://hub.example"})
    asked = {"env": [{"name": "HF_ENDPOINT", "value": "$(MIRROR)/hf"}]}
    names = list(variables(pod_spec(settings, model=HUB, pod=asked)["containers"][0]))
    assert names.index("MIRROR") < names.index("HF_ENDPOINT")


def test_offline_as_a_default_reaches_the_download() -> None:
    spec = pod_spec(config(env={"HF_HUB_OFFLINE": "1"}), model=HUB)
    assert variables(spec["initContainers"][0])["HF_HUB_OFFLINE"] == "1"


def test_pull_secrets_add_up() -> None:
    asked = {"imagePullSecrets": [{"name": "models"}, {"name": "pull"}]}
    found = pod_spec(config(image_pull_secrets=("pull", "mirror")), pod=asked)["imagePullSecrets"]
    assert found == [{"name": "models"}, {"name": "pull"}, {"name": "mirror"}]


@pytest.mark.parametrize(
    ("asked", "policy"),
    [
        pytest.param({}, "Always", id="default-image"),
        pytest.param({"imagePullPolicy": "Never"}, "Never", id="own-policy"),
        pytest.param({"image": "registry.example/other:1"}, None, id="own-image"),
    ],
)
def test_pull_policy_is_that_of_the_default_image(asked: dict[str, Any], policy: str | None) -> None:
    (container,) = pod_spec(config(image_pull_policy="Always"), model=IMAGE, pod=asked)["containers"]
    assert container.get("imagePullPolicy") == policy


def test_authorities_are_mounted_where_something_is_downloaded() -> None:
    settings = config(ca_bundle=CaBundle(config_map="trusted", key="ca.pem"))
    spec = pod_spec(settings, model=HUB)
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "ca-bundle"]
    assert volume["configMap"] == {"name": "trusted", "items": [{"key": "ca.pem", "path": "ca.crt"}]}
    (fetch,) = spec["initContainers"]
    (mount,) = [mount for mount in fetch["volumeMounts"] if mount["name"] == "ca-bundle"]
    assert variables(fetch)["SSL_CERT_FILE"] == f"{mount['mountPath']}/ca.crt"
    # The engine works offline, and a model from an image needs no ConfigMap in its namespace.
    assert "SSL_CERT_FILE" not in variables(spec["containers"][0])
    without = pod_spec(settings, model=IMAGE)
    assert "ca-bundle" not in [volume["name"] for volume in without["volumes"]]


def test_own_certificates_of_a_model_win() -> None:
    settings = config(ca_bundle=CaBundle(config_map="trusted", key="ca.pem"))
    asked = {"env": [{"name": "SSL_CERT_FILE", "value": "/own/ca.pem"}]}
    (fetch,) = pod_spec(settings, model=HUB, pod=asked)["initContainers"]
    assert variables(fetch)["SSL_CERT_FILE"] == "/own/ca.pem"


def test_no_user_is_named_where_the_platform_gives_one() -> None:
    ids = {"runAsUser", "runAsGroup", "fsGroup"}
    assert ids <= set(pod_spec(CONFIG)["securityContext"])
    context = pod_spec(config(has_assigned_user=True))["securityContext"]
    assert not ids & set(context)
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("STOKER_RUNTIME_IMAGE_PULL_POLICY", "Sometimes", "use one of Always, IfNotPresent, Never"),
        ("STOKER_RUNTIME_IMAGE_PULL_SECRETS", "ok,Not_ok", "'Not_ok'; use names of Secrets"),
        ("STOKER_RUNTIME_ENV", "HF_ENDPOINT=x", "must be a JSON object of strings"),
        ("STOKER_RUNTIME_ENV", '["HF_ENDPOINT"]', "must be a JSON object of strings"),
        ("STOKER_RUNTIME_ENV", '{"HF_HUB_DOWNLOAD_TIMEOUT": 60}', "must be a JSON object of strings"),
        ("STOKER_RUNTIME_ENV", '{"a b": "c"}', "'a b', which is no name"),
        ("STOKER_RUNTIME_ENV", '{"HF_HOME": "/x"}', "must not set HF_HOME"),
        ("STOKER_RUNTIME_ENV", '{"HF_TOKEN": "hf_x"}', "use spec.model.secretName"),
        ("STOKER_RUNTIME_CA_BUNDLE", "trusted", "use CONFIGMAP/KEY"),
        ("STOKER_RUNTIME_CA_BUNDLE", "trusted/a/b", "use CONFIGMAP/KEY"),
        ("STOKER_RUNTIME_CA_BUNDLE", "trusted/..", "use CONFIGMAP/KEY"),
        ("STOKER_RUNTIME_ASSIGNED_USER", "maybe", "use true or false"),
        ("STOKER_CORDONED_NODES", "evict", "use one of drain, keep"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=variable) as refused:
        OperatorConfig.from_env({"STOKER_RUNTIME_IMAGE": "r", variable: value})
    assert said in str(refused.value)


def test_two_sources_of_certificates_are_refused() -> None:
    env = {
        "STOKER_RUNTIME_IMAGE": "r",
        "STOKER_RUNTIME_ENV": '{"SSL_CERT_FILE": "/x"}',
        "STOKER_RUNTIME_CA_BUNDLE": "trusted/ca.pem",
    }
    with pytest.raises(ConfigError, match="remove one"):
        OperatorConfig.from_env(env)
