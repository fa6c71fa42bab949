"""The chart against the operator it installs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from check_manifests import RENDERINGS, documents, helm, render, rendered_by_default
from cluster.api import ClusterError
from stoker_operator.__main__ import main
from stoker_operator.api import labels, parse
from stoker_operator.config import (
    LEASE_DURATION_S,
    RENEW_DEADLINE_S,
    RETRY_PERIOD_S,
    CaBundle,
    LeaderElection,
    OperatorConfig,
    PodDefaults,
)
from stoker_operator.desired.metadata import common_labels
from stoker_operator.profiles import STOKER

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
        "STOKER_RUNTIME_IMAGE_PULL_POLICY": "Always",
        "STOKER_RUNTIME_IMAGE_PULL_SECRETS": "pull,mirror",
        "STOKER_RUNTIME_ENV": '{"HF_ENDPOINT": "https://hub.example"}',
        "STOKER_RUNTIME_CA_BUNDLE": "trusted/ca.pem",
        "STOKER_RUNTIME_ASSIGNED_USER": "true",
        "STOKER_WATCH_NAMESPACES": "team-a,team-b",
        "STOKER_ALLOW_FILE_SOURCES": "true",
        "STOKER_CLUSTER_DOMAIN": "example.internal",
        "STOKER_LEADER_ELECT": "true",
        "STOKER_LEADER_ELECT_NAMESPACE": "stoker-system",
        "STOKER_LEADER_ELECT_NAME": "stoker",
        "STOKER_LEADER_ELECT_LEASE_DURATION_S": "15",
        "STOKER_LEADER_ELECT_RENEW_DEADLINE_S": "10",
        "STOKER_LEADER_ELECT_RETRY_PERIOD_S": "2",
        "STOKER_LOG_LEVEL": "warning",
        "STOKER_CORDONED_NODES": "keep",
    }
    assert set(names) == set(env)
    assert OperatorConfig.from_env(env) == OperatorConfig(
        runtime_image="registry.example/runtime:1",
        watch_namespaces=("team-a", "team-b"),
        allow_file_sources=True,
        cluster_domain="example.internal",
        log_level="warning",
        cordoned_nodes="keep",
        pod_defaults=PodDefaults(
            image_pull_policy="Always",
            image_pull_secrets=("pull", "mirror"),
            env={"HF_ENDPOINT": "https://hub.example"},
            ca_bundle=CaBundle(config_map="trusted", key="ca.pem"),
            has_assigned_user=True,
        ),
        leader_election=LeaderElection(
            namespace="stoker-system",
            name="stoker",
            lease_duration_s=15,
            renew_deadline_s=10.0,
            retry_period_s=2.0,
        ),
    )


def test_the_charts_times_are_the_operators_defaults() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["leaderElection"]
    assert values == {
        "enabled": True,
        "leaseDurationSeconds": LEASE_DURATION_S,
        "renewDeadlineSeconds": RENEW_DEADLINE_S,
        "retryPeriodSeconds": RETRY_PERIOD_S,
    }


def operator_objects(*settings: str) -> dict[str, dict[str, Any]]:
    """Return what the chart makes for the operator in its own namespace, by kind."""
    found = documents(render(helm(), settings))
    return {one["kind"]: one for one in found if "helm.sh/hook" not in one["metadata"].get("annotations", {})}


@pytest.mark.integration
def test_several_operators_are_spread_and_kept_and_one_is_not() -> None:
    three, one = operator_objects("replicaCount=3"), operator_objects()
    pod = three["Deployment"]["spec"]["template"]
    for constraint in pod["spec"]["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    budget = three["PodDisruptionBudget"]["spec"]
    assert budget["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert three["Deployment"]["spec"]["replicas"] == 3
    assert "PodDisruptionBudget" not in one
    assert "topologySpreadConstraints" not in one["Deployment"]["spec"]["template"]["spec"]


@pytest.mark.integration
def test_an_upgrade_overlaps_only_where_a_lease_decides_who_writes() -> None:
    elected, alone = operator_objects(), operator_objects("leaderElection.enabled=false")
    assert elected["Deployment"]["spec"]["strategy"]["type"] == "RollingUpdate"
    assert alone["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
    assert "Lease" not in alone
    # Whose spec is the operators' alone: what an upgrade wrote there would be a claim.
    assert set(elected["Lease"]) == {"apiVersion", "kind", "metadata"}
    lease = elected["Lease"]["metadata"]
    variables = operator_variables(rendered_by_default(helm()))
    assert variables["STOKER_LEADER_ELECT_NAME"] == lease["name"]
    assert variables["STOKER_LEADER_ELECT_NAMESPACE"] == lease["namespace"]
    rules = elected["Role"]["rules"]
    assert rules[0]["resourceNames"] == [lease["name"]]


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


def operator_variables(manifests: str) -> dict[str, str]:
    (deployment,) = [found for found in documents(manifests) if found["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"]} | {
        "image": container["image"]
    }


@pytest.mark.integration
@pytest.mark.parametrize("settings", RENDERINGS.values(), ids=RENDERINGS.keys())
def test_operator_takes_what_the_chart_gives_it(settings: tuple[str, ...]) -> None:
    OperatorConfig.from_env(operator_variables(render(helm(), settings)))


@pytest.mark.integration
def test_values_of_an_air_gapped_cluster_reach_both_images_and_runtime_pods() -> None:
    found = operator_variables(render(helm(), RENDERINGS["air-gapped"]))
    mirror = "registry.example:5000/mirror/stoker-dev"
    assert found["image"] == f"{mirror}/stoker-operator@sha256:{'1' * 64}"
    config = OperatorConfig.from_env(found)
    assert config.runtime_image == f"{mirror}/stoker-runtime@sha256:{'2' * 64}"
    assert config.pod_defaults == PodDefaults(
        image_pull_policy="Always",
        image_pull_secrets=("pull", "mirror"),
        env={"HF_ENDPOINT": "https://hub.example", "NO_PROXY": ".svc,.example"},
        ca_bundle=CaBundle(config_map="trusted", key="ca.crt"),
    )


@pytest.mark.integration
@pytest.mark.parametrize(
    ("repository", "image"),
    [
        ("ghcr.io/stoker-dev/stoker-runtime", "mirror.example/stoker-dev/stoker-runtime:v1"),
        ("localhost/stoker-runtime", "mirror.example/stoker-runtime:v1"),
        ("localhost:5000/a/b", "mirror.example/a/b:v1"),
        ("team/stoker-runtime", "mirror.example/team/stoker-runtime:v1"),
        ("stoker-runtime", "mirror.example/stoker-runtime:v1"),
    ],
)
def test_a_mirror_takes_the_place_of_the_registry(repository: str, image: str) -> None:
    values = ("global.imageRegistry=mirror.example", f"runtimeImage.repository={repository}")
    found = operator_variables(render(helm(), (*values, "runtimeImage.tag=v1")))
    assert found["STOKER_RUNTIME_IMAGE"] == image


@pytest.mark.integration
@pytest.mark.parametrize(
    ("settings", "options", "is_assigned"),
    [
        ((), (), False),
        ((), ("--api-versions=security.openshift.io/v1",), True),
        (("assignedUser=true",), (), True),
        (("assignedUser=false",), ("--api-versions=security.openshift.io/v1",), False),
    ],
)
def test_no_user_is_named_where_the_platform_gives_one(
    settings: tuple[str, ...], options: tuple[str, ...], is_assigned: bool
) -> None:
    text = render(helm(), settings, *options)
    assert OperatorConfig.from_env(operator_variables(text)).pod_defaults.has_assigned_user is is_assigned
    made = [found for found in documents(text) if found["kind"] != "CustomResourceDefinition"]
    assert ("runAsUser" in yaml.safe_dump_all(made)) is not is_assigned
    assert text.count("runAsNonRoot: true") == 2


@pytest.mark.integration
@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("runtimeImage.pullPolicy=Sometimes", "/runtimeImage/pullPolicy"),
        ("runtimePods.imagePullSecrets={pull}", "/runtimePods/imagePullSecrets/0"),
        ("runtimePods.env.HF_HUB_DOWNLOAD_TIMEOUT=60", "/runtimePods/env/HF_HUB_DOWNLOAD_TIMEOUT"),
        ("runtimePods.evn.A=b", "'evn' not allowed"),
        ("assignedUser=perhaps", "/assignedUser"),
        ("cordonedNodes=evict", "/cordonedNodes"),
        ("test.timeoutSeconds=0", "/test/timeoutSeconds"),
        ("replicaCount=0", "/replicaCount"),
        ("leaderElection.leaseDurationSeconds=7.5", "/leaderElection/leaseDurationSeconds"),
        ("networkPolicy.clients[0].podSelektor.a=b", "/networkPolicy/clients/0"),
        ("networkPolicy.enabled=true", "networkPolicy.enabled needs networkPolicy.namespaces"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(setting: str, field: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(field)):
        render(helm(), (setting,))


@pytest.mark.integration
def test_the_helm_test_runs_where_the_operator_watches_and_may_do_no_more() -> None:
    found = [
        manifest
        for manifest in documents(render(helm(), ("namespaces={team-a,team-b}",)))
        if manifest["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"
    ]
    kinds = {manifest["kind"]: manifest for manifest in found}
    assert set(kinds) == {"Pod", "ServiceAccount", "Role", "RoleBinding"}
    assert kinds["Role"]["metadata"]["namespace"] == "team-a"
    verbs = {verb for rule in kinds["Role"]["rules"] for verb in rule["verbs"]}
    assert verbs == {"create", "get", "delete"}
    (container,) = kinds["Pod"]["spec"]["containers"]
    command, *args = container["args"]
    options = main.commands[command].make_context(command, args).params
    assert (options["namespace"], options["name"]) == ("team-a", kinds["Pod"]["metadata"]["name"])
    assert options["source"] == "hf://HuggingFaceTB/SmolLM2-135M-Instruct"


def policies(*settings: str) -> list[dict[str, Any]]:
    manifests = documents(render(helm(), ("networkPolicy.enabled=true", *settings)))
    return [manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"]


def test_policy_is_for_the_port_and_the_pods_that_the_operator_makes() -> None:
    text = (CHART / "templates" / "networkpolicies.yaml").read_text()
    ports = re.findall(r"\{port: (\d+), protocol: TCP\}", text)
    assert ports == [str(STOKER.load.port)] * 2
    made = common_labels("m")
    for key in ("app.kubernetes.io/name", "app.kubernetes.io/managed-by"):
        assert f"      {key}: {made[key]}\n" in text


@pytest.mark.integration
def test_a_policy_lets_the_operator_and_named_clients_in() -> None:
    selector = "networkPolicy.clients[0].namespaceSelector.matchLabels.team=apps"
    first, second = policies("namespaces={team-a,team-b}", selector)
    assert [one["metadata"]["namespace"] for one in (first, second)] == ["team-a", "team-b"]
    operators, clients = first["spec"]["ingress"]
    (peer,) = operators["from"]
    (deployment,) = [
        found for found in documents(rendered_by_default(helm())) if found["kind"] == "Deployment"
    ]
    pod = deployment["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= pod.items()
    assert clients["from"] == [{"namespaceSelector": {"matchLabels": {"team": "apps"}}}]


@pytest.mark.integration
def test_a_policy_without_clients_lets_everybody_in() -> None:
    (policy,) = policies("networkPolicy.namespaces={team-a}")
    assert "from" not in policy["spec"]["ingress"][1]
    assert [
        found for found in documents(rendered_by_default(helm())) if found["kind"] == "NetworkPolicy"
    ] == []


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
