import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import backends, host, native, prerequisites
from cluster.api import ClusterError
from cluster.kind import KindCluster, gpu_patch, kind_config, too_old


def node(kubernetes: str = "v1.35.0", containerd: str = "containerd://2.2.0") -> dict[str, Any]:
    info = {"kubeletVersion": kubernetes, "containerRuntimeVersion": containerd}
    return {"metadata": {"name": "dev-worker"}, "status": {"nodeInfo": info}}


class Recorder:
    """Stands for the host: notes command lines and gives prepared answers by their first words."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.commands: list[str] = []
        self.inputs: list[str | None] = []

    def run(self, command: Sequence[str], *, text: str | None = None, timeout_s: float = 0) -> str:
        line = " ".join(command)
        self.commands.append(line)
        self.inputs.append(text)
        return next((answer for start, answer in self.answers.items() if line.startswith(start)), "")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    recorder = Recorder(
        {
            "kind get clusters": "other\n",
            "kind get nodes": "dev-worker\ndev-control-plane\ndev-worker2\n",
            "docker ps": "dev-worker\ndev-control-plane\nsomething\n",
            "docker inspect": "4711\n",
            "kubectl --kubeconfig": json.dumps({"items": [node()]}),
        }
    )
    monkeypatch.setattr(host, "run", recorder.run)
    monkeypatch.setattr(KindCluster, "tool", lambda self, name: name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return recorder


def test_config_mounts_the_audit_log_and_has_one_control_plane() -> None:
    config = yaml.safe_load(kind_config("dev", 3, Path("/state")))
    first, *workers = config["nodes"]
    patch = yaml.safe_load(first["kubeadmConfigPatches"][0])
    flags = {item["name"]: item["value"] for item in patch["apiServer"]["extraArgs"]}
    assert first["extraMounts"] == [{"hostPath": "/state", "containerPath": "/stoker"}]
    assert flags["audit-log-path"] == "/stoker/audit.log"
    assert workers == [{"role": "worker"}, {"role": "worker"}]


def test_every_node_takes_pods() -> None:
    def taints(num_nodes: int) -> list[Any]:
        first = yaml.safe_load(kind_config("dev", num_nodes, Path("/state")))["nodes"][0]
        patches = [yaml.safe_load(text) for text in first["kubeadmConfigPatches"]]
        return [patch["nodeRegistration"] for patch in patches if patch["kind"] == "InitConfiguration"]

    assert taints(2) == [{"taints": []}]
    assert taints(1) == []


def test_image_volumes_are_switched_on() -> None:
    assert yaml.safe_load(kind_config("dev", 1, Path("/state")))["featureGates"] == {"ImageVolume": True}


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        pytest.param(node(), None, id="new"),
        pytest.param(node("v1.33.1", "containerd://2.1.0"), None, id="just-new-enough"),
        pytest.param(node(kubernetes="v1.32.5"), "Kubernetes v1.32.5", id="kubernetes"),
        pytest.param(node(containerd="containerd://2.0.3"), "containerd containerd://2.0.3", id="containerd"),
        pytest.param(node(containerd="containerd://1.7.27"), "need 2.1", id="containerd-1"),
        pytest.param(node(containerd="?"), "need 2.1", id="unreadable"),
    ],
)
def test_nodes_must_be_new_enough_for_image_volumes(found: dict[str, Any], problem: str | None) -> None:
    said = too_old([node(), found])
    assert said is None if problem is None else problem in (said or "")


def test_a_cluster_of_old_nodes_is_removed_and_refused(recorder: Recorder) -> None:
    recorder.answers["kubectl --kubeconfig"] = json.dumps({"items": [node("v1.31.0")]})
    with pytest.raises(ClusterError, match=r"v1\.31\.0.*kind 0\.30"):
        KindCluster("dev").up(num_nodes=2)
    assert recorder.commands[-1] == "kind delete cluster --name dev"


def test_gpu_patch_escapes_the_slash() -> None:
    assert json.loads(gpu_patch(4)) == [
        {"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "4"},
        {"op": "add", "path": "/status/allocatable/nvidia.com~1gpu", "value": "4"},
    ]


def test_up_creates_waits_and_patches_every_node(recorder: Recorder) -> None:
    cluster = KindCluster("dev")
    cluster.up(num_nodes=2, gpus_per_node=4)
    verbs = [command.split()[:3] for command in recorder.commands]
    assert ["kind", "create", "cluster"] in verbs
    create = next(command for command in recorder.commands if command.startswith("kind create"))
    assert f"--name dev --config - --wait 180s --kubeconfig {cluster.kubeconfig}" in create
    patched = [command for command in recorder.commands if " patch node " in command]
    assert [command.split(" patch node ")[1].split()[0] for command in patched] == [
        "dev-control-plane",
        "dev-worker",
    ]
    assert (cluster.folder / "audit-policy.yaml").exists()


def test_up_leaves_a_running_cluster_alone(recorder: Recorder) -> None:
    recorder.answers["kind get clusters"] = "dev\n"
    cluster = KindCluster("dev")
    cluster.folder.mkdir(parents=True)
    cluster.kubeconfig.write_text("")
    cluster.up(num_nodes=2, gpus_per_node=4)
    assert not any(command.startswith(("kind create", "kind delete")) for command in recorder.commands)


def test_only_nodes_that_run_are_named_and_the_control_plane_is_first(recorder: Recorder) -> None:
    assert KindCluster("dev").node_names() == ["dev-control-plane", "dev-worker"]


def test_images_are_loaded_from_an_archive(recorder: Recorder) -> None:
    KindCluster("dev").load_image(Path("/images/a.tar"))
    assert recorder.commands == ["kind load image-archive /images/a.tar --name dev"]


def test_down_deletes_the_cluster_and_its_folder(recorder: Recorder) -> None:
    cluster = KindCluster("dev")
    cluster.folder.mkdir(parents=True)
    cluster.down()
    assert recorder.commands == ["kind delete cluster --name dev"]
    assert not cluster.folder.exists()


def test_a_worker_is_killed_and_the_control_plane_is_not(recorder: Recorder) -> None:
    cluster = KindCluster("dev")
    cluster.kill_node("dev-worker")
    assert recorder.commands[-1] == "docker kill dev-worker"
    with pytest.raises(ClusterError, match="carries the control plane"):
        cluster.kill_node("dev-control-plane")
    with pytest.raises(ClusterError, match="does not run"):
        cluster.kill_node("dev-worker2")


@pytest.mark.parametrize(
    ("uid", "start"),
    [
        pytest.param(0, ["nsenter", "--net=/proc/4711/ns/net", "--"], id="root-enters-the-network"),
        pytest.param(
            1000, ["docker", "exec", "--interactive", "dev-control-plane"], id="others-use-the-container"
        ),
    ],
)
def test_commands_inside(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, uid: int, start: list[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    assert KindCluster("dev").inside("curl", "x") == [*start, "curl", "x"]


@pytest.mark.parametrize(
    ("backend", "kind_lacks", "native_lacks", "chosen"),
    [
        pytest.param("auto", None, None, KindCluster, id="kind-first"),
        pytest.param("auto", "no docker", None, native.NativeCluster, id="native-without-docker"),
        pytest.param("native", None, None, native.NativeCluster, id="native-when-asked-for"),
    ],
)
def test_back_end(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    kind_lacks: str | None,
    native_lacks: str | None,
    chosen: type,
) -> None:
    monkeypatch.setattr(prerequisites, "kind_lacks", lambda: kind_lacks)
    monkeypatch.setattr(prerequisites, "native_lacks", lambda: native_lacks)
    assert isinstance(backends.open_cluster("dev", backend), chosen)


def test_neither_back_end_says_what_each_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites, "kind_lacks", lambda: "there is no docker on PATH")
    monkeypatch.setattr(prerequisites, "native_lacks", lambda: "it needs root")
    with pytest.raises(ClusterError, match=r"(?s)there is no docker.*it needs root"):
        backends.open_cluster("dev")
