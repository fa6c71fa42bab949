"""The kind back end on this machine: what it promises while it runs, and that nothing of it is left."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import host
from cluster.api import ClusterError
from cluster.images import Image, build
from cluster.kind import KindCluster
from cluster.prerequisites import kind_lacks

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(kind_lacks() is not None, reason=f"kind: {kind_lacks()}"),
]
NAME = "kindtest"
NODES = [f"{NAME}-control-plane", f"{NAME}-worker"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[KindCluster]:
    cluster = KindCluster(NAME)
    try:
        cluster.up(num_nodes=2, gpus_per_node=2)
        yield cluster
    finally:
        cluster.down()


def kubectl(cluster: KindCluster, *args: str, text: str | None = None) -> str:
    return host.run(cluster.kubectl(*args), text=text)


def data_image(folder: Path, content: str) -> Path:
    (folder / "file").write_text(content)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
    tag = "localhost/kindtest-data:1"
    return build(Image(tag, folder / "Dockerfile", folder, files=["file"], base_arg=None))


def run_pod(cluster: KindCluster, name: str, node: str) -> None:
    """Run a pod that takes a GPU and mounts the image, and wait until it is ready."""
    # Every node has the image of the pause program; its containerd knows what it is called.
    line = host.run(["docker", "exec", node, "grep", "sandbox_image", "/etc/containerd/config.toml"])
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "data", "image": {"reference": "localhost/kindtest-data:1"}}],
            "containers": [
                {
                    "name": "hold",
                    "image": line.split('"')[1],
                    "imagePullPolicy": "IfNotPresent",
                    "resources": {"limits": {"nvidia.com/gpu": 1}},
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }
            ],
        },
    }
    kubectl(cluster, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    kubectl(cluster, "apply", "--filename=-", text=json.dumps(pod))
    kubectl(cluster, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s")


def test_nodes_are_ready_with_their_gpus_and_take_pods(cluster: KindCluster) -> None:
    nodes = json.loads(kubectl(cluster, "get", "nodes", "--output=json"))["items"]
    assert [node["metadata"]["name"] for node in nodes] == cluster.node_names() == NODES
    assert [node["status"]["allocatable"]["nvidia.com/gpu"] for node in nodes] == ["2", "2"]
    assert [node["spec"].get("taints") for node in nodes] == [None, None]


def test_a_second_up_changes_nothing(cluster: KindCluster) -> None:
    def containers() -> str:
        return host.run(["docker", "ps", "--no-trunc", "--format", "{{.ID}} {{.Names}}"])

    before = containers()
    cluster.up(num_nodes=2, gpus_per_node=2)
    assert containers() == before


def test_an_image_can_be_a_volume_also_when_it_took_over_a_tag(cluster: KindCluster, tmp_path: Path) -> None:
    for content in ("content", "newer content"):
        cluster.load_image(data_image(tmp_path, content))
        for node in NODES:
            run_pod(cluster, f"{content.replace(' ', '-')}-{node}", node)


def test_names_and_service_addresses_answer_inside(cluster: KindCluster) -> None:
    kubectl(
        cluster,
        *(
            "wait",
            "--namespace=kube-system",
            "--for=condition=Available",
            "deployment/coredns",
            "--timeout=120s",
        ),
    )
    service = json.loads(
        kubectl(cluster, "get", "service", "kube-dns", "--namespace=kube-system", "--output=json")
    )
    for address in ("10.96.0.1/443", f"{service['spec']['clusterIP']}/53"):
        assert host.succeeds(cluster.inside("bash", "-c", f"exec 3<>/dev/tcp/{address}"), timeout_s=5)


def test_audit_log_tells_who_wrote_what(cluster: KindCluster) -> None:
    kubectl(cluster, "create", "namespace", "audited")
    events = [json.loads(line) for line in cluster.audit_log.read_text().splitlines()]
    created = [
        event["user"]["username"]
        for event in events
        if event["verb"] == "create" and event.get("objectRef", {}).get("name") == "audited"
    ]
    assert "kubernetes-admin" in created


def test_a_worker_loses_power_and_none_can_be_added(cluster: KindCluster) -> None:
    with pytest.raises(ClusterError, match="cannot add a node"):
        cluster.add_node()
    cluster.kill_node(NODES[1])
    assert cluster.node_names() == NODES[:1]
    kubectl(cluster, "wait", "--for=condition=Ready=Unknown", f"node/{NODES[1]}", "--timeout=60s")
    with pytest.raises(ClusterError, match="carries the control plane"):
        cluster.kill_node(NODES[0])


def test_down_leaves_nothing_behind(cluster: KindCluster) -> None:
    cluster.down()
    assert NAME not in host.run(["docker", "ps", "--all", "--format", "{{.Names}}"])
    assert not cluster.folder.exists()
    cluster.down()
