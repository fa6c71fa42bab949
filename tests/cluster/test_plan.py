from pathlib import Path

import pytest

from cluster.api import ClusterError
from cluster.plan import MAX_NODES, ClusterPlan


def test_nodes_have_addresses_ranges_and_names_of_their_own() -> None:
    plan = ClusterPlan("dev")
    nodes = [plan.node(index) for index in range(MAX_NODES)]
    for field in ("name", "address", "pod_cidr", "netns", "run_dir", "data_dir", "cgroup", "link"):
        assert len({getattr(node, field) for node in nodes}) == MAX_NODES
    assert (nodes[1].address, nodes[1].pod_cidr, nodes[1].netns) == (
        "10.200.0.2",
        "10.244.1.0/24",
        "stoker-dev-1",
    )


def test_clusters_share_no_folder_cgroup_or_namespace() -> None:
    one, other = ClusterPlan("a"), ClusterPlan("b")
    assert one.run_dir != other.run_dir
    assert one.data_dir != other.data_dir
    assert one.cgroup != other.cgroup
    assert one.node(0).netns != other.node(0).netns


@pytest.mark.parametrize("name", ["", "Dev", "-a", "a-", "a_b", "a/b", "x" * 21, "a\n"])
def test_names_that_would_not_fit_into_paths_are_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="1 to 20 lower-case letters"):
        ClusterPlan(name)


def test_longest_name_leaves_room_for_socket_paths() -> None:
    node = ClusterPlan("x" * 20).node(MAX_NODES - 1)
    shim_socket = node.run_dir / "s" / ("0" * 64)
    assert len(str(shim_socket)) < 108
    assert len(str(node.containerd_socket) + ".ttrpc") < 108
    assert len(node.link) < 16


def test_more_nodes_than_the_plan_has_room_for_are_refused() -> None:
    with pytest.raises(ClusterError, match=f"node {MAX_NODES} is outside"):
        ClusterPlan("dev").node(MAX_NODES)


def test_daemons_of_a_node_are_outside_its_pods_cgroup_and_inside_the_clusters() -> None:
    plan = ClusterPlan("dev")
    node = plan.node(1)
    assert not Path(node.daemons_cgroup).is_relative_to(node.cgroup)
    assert Path(node.daemons_cgroup).is_relative_to(plan.cgroup)
    assert Path(node.cgroup).is_relative_to(plan.cgroup)
