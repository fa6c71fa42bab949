"""What platforms ask of pods, on real kubelets: account, user, volumes; new pods for the same spec."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime

import pytest

from scenarios import manifests, models
from scenarios.clientpod import ClientPod
from scenarios.kube import Kube, Object
from scenarios.models import Model
from scenarios.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420, func_only=True)]

USER, GROUP = 20_001, 30_001
_LOOK = (
    "import json, os; text = open('/etc/team/ca.crt').read(); "
    "print(json.dumps([os.getuid(), os.getgroups(), text, os.access('/scratch', os.W_OK)]))"
)
VOLUMES: list[Object] = [
    {"name": "trust", "configMap": {"name": "trusted"}},
    {"name": "scratch", "emptyDir": {"sizeLimit": "10Mi"}},
]
MOUNTS: list[Object] = [
    {"name": "trust", "mountPath": "/etc/team", "readOnly": True},
    {"name": "scratch", "mountPath": "/scratch"},
]


@pytest.fixture(scope="module")
def model(kube: Kube, namespace: str) -> Model:
    """A model whose pods have all that can be asked for."""
    kube.kubectl("create", "serviceaccount", "models", "--namespace", namespace)
    kube.kubectl("create", "configmap", "trusted", "--namespace", namespace, "--from-literal=ca.crt=ours")
    pod: Object = copy.deepcopy(manifests.SMALL_POD)
    pod |= {"serviceAccountName": "models", "volumes": VOLUMES, "volumeMounts": MOUNTS}
    pod["securityContext"] = {"runAsUser": USER, "supplementalGroups": [GROUP]}
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    made = models.apply(
        kube,
        manifests.modeldeployment(
            "settings",
            namespace,
            pod=pod,
            scheduling={"topologySpreadConstraints": [spread]},
            service={"ipFamilyPolicy": "PreferDualStack"},
        ),
    )
    made.wait_settled()
    return made


def test_a_model_serves_as_another_user_with_volumes_of_its_own(model: Model, clients: ClientPod) -> None:
    (pod,) = model.pods()
    assert pod["spec"]["serviceAccountName"] == "models"
    name = pod["metadata"]["name"]
    look = (
        "exec",
        name,
        "--namespace",
        model.namespace,
        "--container",
        "engine",
        "--",
        "python",
        "-c",
        _LOOK,
    )
    user, groups, text, is_writable = json.loads(model.kube.kubectl(*look))
    assert (user, text, is_writable) == (USER, "ours", True)
    assert GROUP in groups
    body = {"model": model.name, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}
    answer = clients.ask(f"{model.status()['url']}/v1/chat/completions", body)
    assert answer["status"] == 200, answer


def test_an_annotation_brings_new_pods_once(model: Model) -> None:
    kube, before = model.kube, {pod["metadata"]["uid"] for pod in model.pods()}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    where = ("annotate", f"mdep/{model.name}", "--namespace", model.namespace)
    kube.kubectl(*where, f"stoker.dev/restarted-at={now}", "--overwrite")
    eventually("it is seen", lambda: model.status().get("restartedAt") == now, 20, model.explain)
    model.wait_settled()
    after = {pod["metadata"]["uid"] for pod in model.pods()}
    assert not before & after
    # As Flux takes back what is not in Git.
    kube.kubectl(*where, "stoker.dev/restarted-at-")
    model.edit(replicas=2)
    model.wait_settled()
    assert after < {pod["metadata"]["uid"] for pod in model.pods()}
