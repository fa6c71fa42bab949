import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import backends, host, native, nodeimage, prerequisites
from cluster.api import ClusterError
from cluster.kind import KindCluster, tags_of
from cluster.kindconfig import NodeAddress, addresses, gpu_patch, kind_config, pod_network, too_old
from cluster.nodeimage import NodeImage
from cluster.versions import cache_dir

OWN = NodeImage(f"{nodeimage.NODE}:v1.37.2-0123", "v1.37.2", "3.6.8", "v1.14.7")


def config_of(num_nodes: int = 1, **options: Any) -> dict[str, Any]:
    config = yaml.safe_load(kind_config("dev", num_nodes, Path("/state"), Path("/archives"), **options))
    assert isinstance(config, dict)
    return config


def patches_of(config: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """The patches of a kind by the version they are for."""
    texts = config["nodes"][0]["kubeadmConfigPatches"]
    found = [patch for patch in map(yaml.safe_load, texts) if patch["kind"] == kind]
    return {patch.get("apiVersion", "").rpartition("/")[2]: patch for patch in found}


def node(kubernetes: str = "v1.35.0", containerd: str = "containerd://2.2.0") -> dict[str, Any]:
    info = {"kubeletVersion": kubernetes, "containerRuntimeVersion": containerd}
    address = [{"type": "InternalIP", "address": "172.18.0.3"}]
    return {
        "metadata": {"name": "dev-worker"},
        "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {"nodeInfo": info, "addresses": address},
    }


class Recorder:
    """Stands for the host: notes command lines and gives prepared answers by what they contain."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.commands: list[str] = []
        self.inputs: list[str | None] = []
        self.failures: dict[str, str] = {}

    def run(self, command: Sequence[str], *, text: str | None = None, timeout_s: float = 0) -> str:
        line = " ".join(command)
        self.commands.append(line)
        self.inputs.append(text)
        for part, error in self.failures.items():
            if part in line:
                raise ClusterError(error)
        return next((answer for start, answer in self.answers.items() if line.startswith(start)), "")

    def created(self) -> list[str]:
        return [line for line in self.commands if line.startswith("kind create")]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    recorder = Recorder(
        {
            "kind get clusters": "other\n",
            "kind get nodes": "dev-worker\ndev-control-plane\ndev-worker2\n",
            "docker ps": "dev-worker\ndev-control-plane\nsomething\n",
            "docker inspect --format {{.Config.Image}}": "kindest/node:v1.37.0\n",
            "docker inspect": "4711\n",
            "docker info": "2\n",
            "docker exec dev-control-plane grep": 'snapshotter = "overlayfs"\n',
            "docker exec dev-worker grep": 'snapshotter = "native"\n',
            "kubectl --kubeconfig": json.dumps({"items": [node()]}),
        }
    )
    monkeypatch.setattr(host, "run", recorder.run)
    monkeypatch.setattr(host, "succeeds", lambda command, timeout_s=0: True)
    monkeypatch.setattr(KindCluster, "tool", lambda self, name: name)
    monkeypatch.setattr(nodeimage, "loaded", lambda: None)
    monkeypatch.delenv("STOKER_KIND_NODE_IMAGE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return recorder


def test_config_mounts_the_audit_log_and_the_archives() -> None:
    first, *workers = config_of(3)["nodes"]
    archives = {"hostPath": "/archives", "containerPath": "/stoker-images", "readOnly": True}
    assert first["extraMounts"] == [{"hostPath": "/state", "containerPath": "/stoker"}, archives]
    assert workers == [{"role": "worker", "extraMounts": [archives]}] * 2


def test_api_server_and_controllers_are_told_the_same_in_both_of_kubeadms_versions() -> None:
    patches = patches_of(config_of(), "ClusterConfiguration")
    assert sorted(patches) == ["v1beta3", "v1beta4"]
    for part, name, value in (
        ("apiServer", "audit-log-path", "/stoker/audit.log"),
        ("controllerManager", "node-monitor-grace-period", "16s"),
    ):
        assert patches["v1beta3"][part]["extraArgs"][name] == value
        assert {"name": name, "value": value} in patches["v1beta4"][part]["extraArgs"]


@pytest.mark.parametrize("is_cgroup_v1", [True, False])
def test_kubelets_run_on_cgroup_v1_where_there_is_no_other(*, is_cgroup_v1: bool) -> None:
    (patch,) = patches_of(config_of(is_cgroup_v1=is_cgroup_v1), "KubeletConfiguration").values()
    assert patch.get("failCgroupV1") == (False if is_cgroup_v1 else None)


def test_services_lead_to_new_pods_as_soon_as_in_the_native_back_end() -> None:
    (patch,) = patches_of(config_of(), "KubeProxyConfiguration").values()
    assert {patch[mode]["minSyncPeriod"] for mode in ("iptables", "nftables")} == {"100ms"}


def test_every_node_takes_pods() -> None:
    (patch,) = patches_of(config_of(2), "InitConfiguration").values()
    assert patch["nodeRegistration"] == {"taints": []}
    assert patches_of(config_of(1), "InitConfiguration") == {}


def test_image_volumes_are_switched_on() -> None:
    assert config_of()["featureGates"] == {"ImageVolume": True}


def test_nodes_of_our_own_image_find_its_pods_and_have_no_other_network() -> None:
    config = config_of(own=OWN)
    for patch in patches_of(config, "ClusterConfiguration").values():
        assert patch["imageRepository"] == "localhost/stoker-kind"
        assert (patch["etcd"]["local"]["imageTag"], patch["dns"]["imageTag"]) == ("3.6.8", "v1.14.7")
    assert config["networking"]["disableDefaultCNI"] is True
    assert "networking" not in config_of()
    assert "imageRepository" not in patches_of(config_of(), "ClusterConfiguration")["v1beta4"]


def test_pods_reach_other_nodes_by_their_addresses_and_leave_with_their_nodes() -> None:
    one, two = (
        NodeAddress("a", "172.18.0.2", "10.244.0.0/24"),
        NodeAddress("b", "172.18.0.3", "10.244.1.0/24"),
    )
    script = pod_network(one, [one, two])
    assert "ip route replace 10.244.1.0/24 via 172.18.0.3\n" in script
    assert "10.244.0.0/24 via" not in script
    assert '"subnet": "10.244.0.0/24"' in script
    assert "-s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE" in script
    assert script.splitlines()[-1].startswith("mv ")  # the node is ready from here on


def test_addresses_are_waited_for() -> None:
    assert addresses([node()]) == [NodeAddress("dev-worker", "172.18.0.3", "10.244.1.0/24")]
    assert addresses([node(), {**node(), "spec": {}}]) is None


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
    assert recorder.created() == [
        f"kind create cluster --name dev --config - --kubeconfig {cluster.kubeconfig}"
    ]
    assert any(" wait --for=condition=Ready node --all" in command for command in recorder.commands)
    patched = [command for command in recorder.commands if " patch node " in command]
    assert [command.split(" patch node ")[1].split()[0] for command in patched] == [
        "dev-control-plane",
        "dev-worker",
    ]
    assert (cluster.folder / "audit-policy.yaml").exists()
    assert cluster.audit_log.read_text() == ""


def test_nodes_are_made_from_the_image_that_was_named(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_KIND_NODE_IMAGE", "registry.example/node:v1.36.0")
    KindCluster("dev").up()
    assert [line.rpartition(" ")[2] for line in recorder.created()] == ["registry.example/node:v1.36.0"]
    monkeypatch.setenv("STOKER_KIND_NODE_IMAGE", f"{nodeimage.NODE}:v1.0.0-old")
    with pytest.raises(ClusterError, match=r"v1\.0\.0-old is of other pins"):
        KindCluster("dev").up()


def test_without_a_registry_a_node_image_is_made_and_its_nodes_are_connected(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ensure() -> NodeImage:
        recorder.failures.clear()
        recorder.answers["docker inspect --format {{.Config.Image}}"] = OWN.tag
        return OWN

    monkeypatch.setattr(nodeimage, "ensure", ensure)
    recorder.failures["kind create"] = 'failed to pull image "kindest/node:v1.37.0"'
    KindCluster("dev").up()
    assert [line.rpartition(" ")[2] == OWN.tag for line in recorder.created()] == [False, True]
    assert "cannot be downloaded" in capsys.readouterr().err
    scripts = [
        text
        for command, text in zip(recorder.commands, recorder.inputs, strict=True)
        if command == "docker exec --interactive dev-worker sh -s"
    ]
    assert [text is not None and "10-stoker.conflist" in text for text in scripts] == [True]


def test_an_engine_that_has_our_image_is_not_sent_to_a_registry(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodeimage, "loaded", lambda: OWN)
    KindCluster("dev").up()
    assert [line.rpartition(" ")[2] for line in recorder.created()] == [OWN.tag]


def test_other_failures_of_kind_are_told(recorder: Recorder) -> None:
    recorder.failures["kind create"] = "could not find a log line"
    with pytest.raises(ClusterError, match="could not find a log line"):
        KindCluster("dev").up()
    assert len(recorder.created()) == 1


def test_up_leaves_a_running_cluster_alone(recorder: Recorder) -> None:
    recorder.answers["kind get clusters"] = "dev\n"
    cluster = KindCluster("dev")
    cluster.folder.mkdir(parents=True)
    cluster.kubeconfig.write_text("")
    cluster.up(num_nodes=2, gpus_per_node=4)
    assert not any(command.startswith(("kind create", "kind delete")) for command in recorder.commands)


def test_what_an_interrupted_first_run_left_is_removed(recorder: Recorder) -> None:
    recorder.answers["kind get clusters"] = "dev\n"
    KindCluster("dev").up(num_nodes=2)  # its containers run, and there are no credentials for it
    verbs = [line.split()[1] for line in recorder.commands if line.startswith("kind ")]
    assert verbs.index("delete") < verbs.index("create")


def test_only_nodes_that_run_are_named_and_the_control_plane_is_first(recorder: Recorder) -> None:
    assert KindCluster("dev").node_names() == ["dev-control-plane", "dev-worker"]


def save_archive(path: Path, *tags: str) -> Path:
    """An archive as `docker save` writes it, as far as anybody reads it here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps([{"RepoTags": [tag]} for tag in tags]).encode()
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("manifest.json")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return path


def test_built_images_are_read_from_the_mounted_folder_once(recorder: Recorder) -> None:
    cluster = KindCluster("dev")
    cluster.folder.mkdir(parents=True)
    archive = save_archive(cache_dir() / "images" / "thing-1-0123.tar", "localhost/thing:1")
    cluster.load_image(archive)
    imports = [line for line in recorder.commands if " images import " in line]
    start = "docker exec {} ctr --namespace=k8s.io images import --local --snapshotter={} /stoker-images/{}"
    assert imports == [
        start.format("dev-control-plane", "overlayfs", archive.name),
        start.format("dev-worker", "native", archive.name),
    ]
    labels = [line for line in recorder.commands if " images label localhost/thing:1 " in line]
    assert len(labels) == 2
    num_commands = len(recorder.commands)
    cluster.load_image(archive)
    assert len(recorder.commands) == num_commands


def test_archives_from_elsewhere_are_loaded_by_kind(recorder: Recorder, tmp_path: Path) -> None:
    cluster = KindCluster("dev")
    cluster.folder.mkdir(parents=True)
    archive = save_archive(tmp_path / "a.tar", "localhost/a:1")
    cluster.load_image(archive)
    assert [line for line in recorder.commands if line.startswith("kind load")] == [
        f"kind load image-archive {archive} --name dev --nodes {name}"
        for name in ("dev-control-plane", "dev-worker")
    ]


def test_tags_are_read_from_an_archive(tmp_path: Path) -> None:
    assert tags_of(save_archive(tmp_path / "a.tar", "a:1", "b:2")) == ["a:1", "b:2"]
    with tarfile.open(tmp_path / "oci.tar", "w"):
        pass
    assert tags_of(tmp_path / "oci.tar") == []


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
    monkeypatch.setenv("STOKER_CLUSTER_BACKEND", backend)
    monkeypatch.setattr(prerequisites, "kind_lacks", lambda: kind_lacks)
    monkeypatch.setattr(prerequisites, "native_lacks", lambda: native_lacks)
    assert isinstance(backends.open_cluster("dev", backend), chosen)
    assert isinstance(backends.open_cluster("dev"), chosen)


def test_neither_back_end_says_what_each_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites, "kind_lacks", lambda: "there is no docker on PATH")
    monkeypatch.setattr(prerequisites, "native_lacks", lambda: "it needs root")
    monkeypatch.delenv("STOKER_CLUSTER_BACKEND", raising=False)
    with pytest.raises(ClusterError, match=r"(?s)there is no docker.*it needs root"):
        backends.open_cluster("dev")
