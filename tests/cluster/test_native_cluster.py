"""The native back end on this machine: what it promises while it runs, and that nothing of it is left."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import build as tools
from cluster import cgroups, host, teardown
from cluster.api import ClusterError
from cluster.images import Image, build
from cluster.mounts import FIXED_FOLDERS, TUNABLES
from cluster.native import NativeCluster
from cluster.plan import ClusterPlan
from cluster.prerequisites import native_lacks

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(native_lacks() is not None, reason=f"native cluster: {native_lacks()}"),
]
NAME = "selftest"
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "hold"},
    "spec": {
        "nodeName": f"{NAME}-1",
        "volumes": [{"name": "data", "image": {"reference": "localhost/selftest-data:1"}}],
        "containers": [
            {
                "name": "hold",
                "image": "localhost/stoker-pause:1",
                "resources": {"limits": {"nvidia.com/gpu": 1}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }
        ],
    },
}


def leftovers(plan: ClusterPlan) -> list[str]:
    """Everything on the host that belongs to a cluster; empty when it is gone."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    command_lines = host.run(["ps", "-eo", "args", "-ww"]).splitlines()
    found = [
        f"process {line}"
        for line in command_lines
        if f"{plan.run_dir}/" in line or f"{plan.data_dir}/" in line
    ]
    found += [f"process {pid}" for pid in cgroups.members(plan.cgroup)]
    found += [
        f"mount {point}" for point in mounts if plan.name in point.split("/") or plan.node(0).netns in point
    ]
    found += [f"namespace {name}" for name in teardown.namespaces(plan)]
    found += [
        f"cgroup {root / plan.cgroup}" for root in cgroups.hierarchies() if (root / plan.cgroup).exists()
    ]
    return found + [f"folder {folder}" for folder in (plan.run_dir, plan.data_dir) if folder.exists()]


def kernel_parameters() -> dict[str, str]:
    return {name: Path("/proc/sys", name).read_text() for name in TUNABLES}


@pytest.fixture(scope="module")
def cluster() -> Iterator[NativeCluster]:
    before = kernel_parameters()
    cluster = NativeCluster(NAME)
    try:
        cluster.up(num_nodes=2, gpus_per_node=2)
        assert kernel_parameters() == before
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def data_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("data"), "content")


def build_data(folder: Path, content: str) -> Path:
    (folder / "file").write_text(content)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
    return build(
        Image("localhost/selftest-data:1", folder / "Dockerfile", folder, files=["file"], base_arg=None)
    )


def kubectl(cluster: NativeCluster, *args: str, text: str | None = None) -> str:
    return host.run(cluster.kubectl(*args), text=text)


def test_nodes_are_ready_with_their_gpus_and_reachable_from_the_host(cluster: NativeCluster) -> None:
    nodes = json.loads(kubectl(cluster, "get", "nodes", "--output=json"))["items"]
    assert [node["metadata"]["name"] for node in nodes] == cluster.node_names() == [f"{NAME}-0", f"{NAME}-1"]
    assert [node["status"]["allocatable"]["nvidia.com/gpu"] for node in nodes] == ["2", "2"]


def test_a_second_up_changes_nothing(cluster: NativeCluster) -> None:
    before = cluster.state()
    cluster.up(num_nodes=2, gpus_per_node=2)
    assert cluster.state() == before


def test_a_pod_runs_with_a_gpu_and_an_image_as_volume(cluster: NativeCluster, data_image: Path) -> None:
    cluster.load_image(data_image)
    kubectl(cluster, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    kubectl(cluster, "apply", "--filename=-", text=json.dumps(POD))
    kubectl(cluster, "wait", "--for=condition=Ready", "pod/hold", "--timeout=60s")
    assert kubectl(cluster, "logs", "hold") == ""


def test_an_image_that_took_over_a_tag_can_be_a_volume(cluster: NativeCluster, tmp_path: Path) -> None:
    cluster.load_image(build_data(tmp_path, "newer content"))
    pod = {**POD, "metadata": {"name": "again"}}
    kubectl(cluster, "apply", "--filename=-", text=json.dumps(pod))
    kubectl(cluster, "wait", "--for=condition=Ready", "pod/again", "--timeout=60s")


def test_service_addresses_answer_inside_and_the_host_has_no_route_to_them(cluster: NativeCluster) -> None:
    probe = ["bash", "-c", "exec 3<>/dev/tcp/10.96.0.1/443"]
    assert host.succeeds(cluster.inside(*probe), timeout_s=5)
    routes = host.run(["ip", "route"])
    assert not any(network in routes for network in ("10.96.", "10.244.", "10.200."))


def test_nothing_inside_reaches_the_outside(cluster: NativeCluster) -> None:
    assert not host.succeeds(cluster.inside("bash", "-c", "exec 3<>/dev/tcp/192.0.2.1/80"), timeout_s=5)


def test_audit_log_tells_who_wrote_what(cluster: NativeCluster) -> None:
    kubectl(cluster, "create", "namespace", "audited")
    events = [json.loads(line) for line in cluster.audit_log.read_text().splitlines()]
    created = [
        event["user"]["username"]
        for event in events
        if event["verb"] == "create" and event.get("objectRef", {}).get("name") == "audited"
    ]
    assert "kubernetes-admin" in created


def test_a_node_joins_with_the_images_of_the_others_and_another_loses_power(cluster: NativeCluster) -> None:
    name = cluster.add_node()
    assert name == f"{NAME}-2"
    listed = cluster._node(2, tools.ensure("e2e"))._ctr("images", "list", "--quiet")
    assert "localhost/selftest-data:1" in host.run(listed).split()
    cluster.kill_node(f"{NAME}-1")
    assert cluster.node_names() == [f"{NAME}-0", f"{NAME}-2"]
    assert cgroups.members(cluster.plan.node(1).cgroup) == []
    kubectl(cluster, "wait", "--for=condition=Ready=Unknown", f"node/{NAME}-1", "--timeout=60s")
    with pytest.raises(ClusterError, match="carries the control plane"):
        cluster.kill_node(f"{NAME}-0")


def test_down_leaves_nothing_behind(cluster: NativeCluster) -> None:
    made = [folder for folder in FIXED_FOLDERS if str(folder) in notes_of_made(cluster.plan)]
    assert leftovers(cluster.plan) != []
    cluster.down()
    assert leftovers(cluster.plan) == []
    others = list(cluster.plan.run_root.glob("[!.]*"))
    assert others or [folder for folder in made if folder.exists()] == []
    cluster.down()
    assert leftovers(cluster.plan) == []


def notes_of_made(plan: ClusterPlan) -> list[str]:
    notes = plan.run_root / ".made-folders"
    return notes.read_text().split() if notes.exists() else []


@pytest.mark.parametrize("crash", ["_write_files", "_import", "_wait_for_nodes"])
def test_down_clears_away_what_a_crashed_up_left(monkeypatch: pytest.MonkeyPatch, crash: str) -> None:
    def crashed(*args: object) -> None:
        raise KeyboardInterrupt

    cluster = NativeCluster("selfcrash")
    monkeypatch.setattr(NativeCluster, crash, crashed)
    with pytest.raises(KeyboardInterrupt):
        cluster.up(num_nodes=1, gpus_per_node=0)
    cluster.down()
    assert leftovers(cluster.plan) == []


def test_a_component_that_cannot_start_is_named_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = NativeCluster("selfbad")
    monkeypatch.setattr("cluster.controlplane.ETCD_URL", "http://not-an-address")
    with pytest.raises(ClusterError, match=r"(?s)(kube-apiserver|etcd) .*End of .*\.log"):
        cluster.up(num_nodes=1, gpus_per_node=0)
    cluster.down()
    assert leftovers(cluster.plan) == []
