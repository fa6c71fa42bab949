"""The integration profile on this machine."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from cluster import host
from cluster.api import ClusterError
from cluster.integration import ControlPlane, control_plane
from cluster.prerequisites import no_build

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(no_build("integration") is not None, reason=f"{no_build('integration')}"),
]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with control_plane(controllers=True, scheduler=True) as running:
        yield running


def test_objects_are_stored_and_schema_errors_refused(plane: ControlPlane) -> None:
    host.run(plane.kubectl("create", "configmap", "one", "--from-literal=a=b"))
    stored = json.loads(host.run(plane.kubectl("get", "configmap", "one", "--output=json")))
    assert stored["data"] == {"a": "b"}
    bad = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "two"}, "data": {"a": {}}}
    with pytest.raises(ClusterError, match="data"):
        host.run(plane.kubectl("create", "--filename=-"), text=json.dumps(bad))


def test_children_go_with_their_owner(plane: ControlPlane) -> None:
    host.run(plane.kubectl("create", "deployment", "owner", "--image=localhost/none:1", "--replicas=2"))
    host.run(plane.kubectl("wait", "--for=create", "pods", "--selector=app=owner", "--timeout=30s"))
    host.run(
        plane.kubectl("delete", "deployment", "owner", "--cascade=foreground", "--wait", "--timeout=60s")
    )
    assert host.run(plane.kubectl("get", "replicasets,pods", "--output=name")) == ""


def test_pods_without_a_node_are_unschedulable(plane: ControlPlane) -> None:
    host.run(plane.kubectl("run", "homeless", "--image=localhost/none:1"))
    host.run(plane.kubectl("wait", "--for=condition=PodScheduled=False", "pod/homeless", "--timeout=30s"))


def test_audit_log_is_written(plane: ControlPlane) -> None:
    events = [json.loads(line) for line in plane.audit_log.read_text().splitlines()]
    assert {event["level"] for event in events} == {"Metadata"}
    assert "RequestReceived" not in {event["stage"] for event in events}


def test_two_at_once_do_not_meet(plane: ControlPlane) -> None:
    host.run(plane.kubectl("create", "namespace", "only-here"))
    with control_plane() as other:
        assert other.server != plane.server
        names = host.run(other.kubectl("get", "namespaces", "--output=name"))
        assert "namespace/only-here" not in names


def test_nothing_runs_after_the_context() -> None:
    with control_plane() as plane:
        folder = str(plane.kubeconfig.parent.parent)
        assert folder in processes()
    assert folder not in processes()
    assert not plane.kubeconfig.exists()


def processes() -> str:
    return subprocess.run(["ps", "-eo", "args", "-ww"], capture_output=True, text=True, check=True).stdout
