"""What the chart makes of values: null, and what cannot work."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from check_manifests import documents, helm, render, rendered_by_default
from cluster.api import ClusterError
from stoker_operator.config import ConfigError, OperatorConfig

CHART = Path(__file__).resolve().parents[2] / "charts" / "stoker"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
# Maps that whoever installs fills as Kubernetes has it: null empties them.
FREE = ("resources", "test.resources", "monitoring.dashboard.labels")


def fields(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of the chart with its name; a map comes before what is in it."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        yield name, value
        if isinstance(value, dict) and name not in FREE:
            yield from fields(value, f"{name}.")


MAPS = sorted(name for name, value in fields(VALUES) if isinstance(value, dict) and name not in FREE)


def test_defaults_for_null_are_those_of_the_values() -> None:
    """The template needs a copy: helm hands it no values.yaml, and has taken away what is null."""
    text = (CHART / "templates" / "_values.tpl").read_text()
    body = text.split('{{- define "stoker.defaults" -}}')[1].split("{{- end -}}")[0]
    assert yaml.safe_load(body) == VALUES


def test_every_template_has_whole_values() -> None:
    templates = [*(CHART / "templates").rglob("*.yaml"), CHART / "templates" / "NOTES.txt"]
    assert len(templates) > 10
    for path in templates:
        assert path.read_text().startswith('{{- include "stoker.values" . -}}\n'), path


@pytest.mark.integration
@pytest.mark.parametrize("name", MAPS)
def test_a_map_without_anything_counts_as_left_out(name: str) -> None:
    assert render(helm(), (f"{name}=null",)) == rendered_by_default(helm())


@pytest.mark.integration
def test_fields_that_are_null_count_as_left_out() -> None:
    leaves = [name for name, value in fields(VALUES) if name not in MAPS and name not in FREE]
    assert {"namespaces", "crds.install", "rbac.create", "logLevel", "image.repository"} <= set(leaves)
    assert render(helm(), tuple(f"{name}=null" for name in leaves)) == rendered_by_default(helm())


@pytest.mark.integration
@pytest.mark.parametrize("name", [*FREE, "resources.limits"])
def test_null_empties_a_map_that_is_free_to_fill(name: str) -> None:
    settings = (f"{name}=null", "monitoring.dashboard.enabled=true")
    assert render(helm(), settings) != render(helm(), settings[1:])


DIGITS = "0123456789abcdef" * 4
OWN_LABEL = "app\\.kubernetes\\.io/name"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("image.repository=reg.example/x:1.0", '"reg.example/x", and the tag into image.tag'),
        ("image.repository=reg.example:5000/x:1.0", '"reg.example:5000/x", and the tag into image.tag'),
        ("runtimeImage.repository=a/x@sha256:12", '"a/x", and what follows the @ into runtimeImage.digest'),
        ("image.repository=reg.example//x", 'image.repository is "reg.example//x": write "reg.example/x"'),
        ("image.repository=https://reg.example/x/", 'write "reg.example/x"'),
        ("runtimeImage.repository=reg.example/Foo/x", 'write "reg.example/foo/x"'),
        ("image.repository=", 'image.repository is "": write an image\'s name without its tag'),
        ("image.tag=:v1", 'image.tag is ":v1": write "v1"'),
        ("runtimeImage.tag=a/b", "a tag has up to 128 letters, digits"),
        (f"image.digest=sha256:{DIGITS.upper()}", f'write "sha256:{DIGITS}"'),
        (f"image.digest=x/y@sha256:{DIGITS}", f'write "sha256:{DIGITS}"'),
        (f"runtimeImage.digest={DIGITS}", f'write "sha256:{DIGITS}"'),
        ("runtimeImage.digest=sha256:12", "write sha256: and 64 hexadecimal digits"),
        ("global.imageRegistry=https://Reg.example/", 'write "reg.example"'),
        ("global.imageRegistry=reg.example:5000/mirror/", 'write "reg.example:5000/mirror"'),
        # Container engines would look for it on docker.io.
        ("global.imageRegistry=mirror", "write a host, which has a dot or a port"),
        ("global.imageRegistry=reg.example/x:1", "write a host, which has a dot or a port"),
        ("global.imageRegistri=reg.example", "global.imageRegistri is not known: write global.imageRegistry"),
        ("global.imageRegsitry=a", "write global.imageRegistry"),
        ("global.image_registry=a", "write global.imageRegistry"),
        ("global.imagePullSecret=a", "write global.imagePullSecrets"),
        ("global.imagePullSecrets[0].nam=a", "global.imagePullSecrets[0] has no name"),
        ("global.imagePullSecrets={A}", 'global.imagePullSecrets[0] is "A"'),
        ("imagePullSecrets[0].name=A", 'imagePullSecrets[0].name is "A"'),
        ("runtimePods.imagePullSecrets[0].name=a b", 'runtimePods.imagePullSecrets[0].name is "a b"'),
        ("runtimePods.env.2X=y", 'runtimePods.env has "2X", which is no name of a variable'),
        ("runtimePods.caBundle.configMap=Trusted", 'runtimePods.caBundle.configMap is "Trusted"'),
        ("runtimePods.caBundle.key=a/b", 'runtimePods.caBundle.key is "a/b": write a key'),
        ("runtimePods.caBundle.key=ca.pem", "runtimePods.caBundle.configMap is empty: name the ConfigMap"),
        (
            "runtimePods.caBundle.configMap=trusted,runtimePods.env.SSL_CERT_FILE=/x",
            "runtimePods.env sets SSL_CERT_FILE, and so does runtimePods.caBundle: remove one",
        ),
        ("namespaces={Team}", 'namespaces[0] is "Team": a namespace\'s name'),
        ("networkPolicy.namespaces={a.b}", 'networkPolicy.namespaces[0] is "a.b"'),
        ("serviceAccount.name=a_b", 'serviceAccount.name is "a_b"'),
        ("serviceAccount.create=false,serviceAccount.annotations.a=b", "annotate your account yourself"),
        ("priorityClassName=High", 'priorityClassName is "High"'),
        ("clusterDomain=.Cluster.local", 'clusterDomain is ".Cluster.local": write "cluster.local"'),
        ("monitoring.podMonitor.interval=15x", "write a number with its unit"),
        ("test.modelSource=HuggingFaceTB/SmolLM2", 'write "hf://HuggingFaceTB/SmolLM2"'),
        ("test.modelSource=hf://a/b: c", "use hf://OWNER/NAME, oci://IMAGE or pvc://CLAIM/PATH"),
        ("test.modelSource=file:///models", "use hf://OWNER/NAME, oci://IMAGE or pvc://CLAIM/PATH"),
        (f"podLabels.{OWN_LABEL}=x", "podLabels sets app.kubernetes.io/name, which the chart sets itself"),
        (f"monitoring.alerts.labels.{OWN_LABEL}=x", "monitoring.alerts.labels sets app.kubernetes.io/name"),
        (
            "replicaCount=2,leaderElection.enabled=false",
            "leaderElection.enabled is false: operators that",
        ),
        (
            "leaderElection.renewDeadlineSeconds=7",
            "write at least a second less than leaderElection.lease",
        ),
        (
            "leaderElection.retryPeriodSeconds=2",
            "at most a third of leaderElection.renewDeadline",
        ),
        ("extraEnv[0].name=STOKER_LOG_LEVEL", "extraEnv sets STOKER_LOG_LEVEL, which the chart sets"),
    ],
)
def test_a_refusal_names_the_field_and_what_to_write(setting: str, said: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(said)):
        render(helm(), (setting,))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["HF_HOME", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"])
def test_the_operator_and_the_chart_say_the_same_of_reserved_variables(name: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        OperatorConfig.from_env({"STOKER_RUNTIME_IMAGE": "x", "STOKER_RUNTIME_ENV": json.dumps({name: "x"})})
    said = str(refusal.value).replace("STOKER_RUNTIME_ENV", "runtimePods.env")
    with pytest.raises(ClusterError, match=re.escape(said)):
        render(helm(), (f"runtimePods.env.{name}=x",))


@pytest.mark.integration
def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ClusterError, match=r"(?s)image\.tag is.*clusterDomain is"):
        render(helm(), ("image.tag=a/b", "clusterDomain=a..b"))


@pytest.mark.integration
def test_other_values_that_can_work_are_taken() -> None:
    settings = (
        "image.repository=[::1]:5000/a__b/c-d.e",
        "runtimeImage.repository=REG.example/x",
        "global.imageTag=1",
        "global.imagePullPolicy=Always",
        "global.image.registry=x",
        "global.storageClass=fast",
        "serviceAccount.name=a.b",
        "test.modelSource=pvc://models/smollm2",
    )
    assert render(helm(), settings)


@pytest.mark.integration
def test_a_chart_of_charts_keeps_its_own_global_keys(tmp_path: Path) -> None:
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: whole\nversion: 1.0.0\n")
    (tmp_path / "values.yaml").write_text(
        "global: {imagePullSecret: theirs, imageRegistry: reg.example, imagePullSecrets: [ours]}\n"
        "stoker: {namespaces: null, crds: null}\n"
    )
    shutil.copytree(CHART, tmp_path / "charts" / "stoker")
    text = render(helm(), (), chart=str(tmp_path))
    assert '"reg.example/stoker-dev/stoker-operator:' in text
    assert 'imagePullSecrets:\n        - name: "ours"\n' in text


@pytest.mark.integration
def test_global_pull_secrets_are_for_both_images() -> None:
    settings = (
        "global.imagePullSecrets={everywhere,own}",
        "global.imagePullSecrets[2].name=third",
        "imagePullSecrets[0].name=own",
        "runtimePods.imagePullSecrets[0].name=models",
    )
    manifests = list(documents(render(helm(), settings)))
    (deployment,) = [found for found in manifests if found["kind"] == "Deployment"]
    (test,) = [found for found in manifests if found["kind"] == "Pod"]
    pod = deployment["spec"]["template"]["spec"]
    secrets = [{"name": "own"}, {"name": "everywhere"}, {"name": "third"}]
    assert pod["imagePullSecrets"] == test["spec"]["imagePullSecrets"] == secrets
    variables = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    assert variables["STOKER_RUNTIME_IMAGE_PULL_SECRETS"] == "models,everywhere,own,third"
