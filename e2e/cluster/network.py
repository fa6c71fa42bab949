"""The commands that lay out the network namespaces of a native cluster. Pure."""

from __future__ import annotations

from cluster.host import NETNS
from cluster.plan import ClusterPlan, NodePlan


def enter(netns: str, *command: str) -> list[str]:
    """The command line that runs a command in a network namespace.

    `ip netns exec` would do more: it mounts another /sys, in which a kubelet finds no cgroups.
    """
    return ["nsenter", f"--net={NETNS / netns}", "--", *command]


def namespace(netns: str) -> list[list[str]]:
    """Create a namespace that forwards packets."""
    return [
        ["ip", "netns", "add", netns],
        ["ip", "-n", netns, "link", "set", "lo", "up"],
        enter(netns, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"),
    ]


def first_node(plan: ClusterPlan) -> list[list[str]]:
    """Node 0: its address on a link that leads nowhere, and a default route over it.

    Components look for a default route to guess their own address, and find one; packets to the outside end
    there.
    """
    node = plan.node(0)
    ip = ["ip", "-n", node.netns]
    return [
        *namespace(node.netns),
        [*ip, "link", "add", "up0", "type", "veth", "peer", "name", "nowhere"],
        [*ip, "address", "add", f"{node.address}/32", "dev", "up0"],
        [*ip, "link", "set", "nowhere", "up"],
        [*ip, "link", "set", "up0", "up"],
        [*ip, "route", "add", "default", "dev", "up0"],
    ]


def worker(plan: ClusterPlan, node: NodePlan) -> list[list[str]]:
    """A further node: linked to node 0, which routes between its pods and everybody else's."""
    hub = plan.node(0)
    at_hub, at_node = ["ip", "-n", hub.netns], ["ip", "-n", node.netns]
    return [
        *namespace(node.netns),
        [*at_hub, "link", "add", node.link, "type", "veth", "peer", "name", "up0", "netns", node.netns],
        [*at_hub, "address", "add", hub.address, "peer", node.address, "dev", node.link],
        [*at_node, "address", "add", node.address, "peer", hub.address, "dev", "up0"],
        [*at_hub, "link", "set", node.link, "up"],
        [*at_node, "link", "set", "up0", "up"],
        [*at_node, "route", "add", "default", "via", hub.address, "dev", "up0"],
        [*at_hub, "route", "add", node.pod_cidr, "via", node.address],
    ]


def api_relay(plan: ClusterPlan, host_port: int) -> tuple[list[str], list[str]]:
    """The two halves of the way from the host to the API server: (inside node 0's network, on the host).

    They meet at a Unix socket, which belongs to the file system and not to a network namespace, so the host
    gets no route to the cluster and the cluster none to the host.
    """
    socket = str(plan.api_socket)
    server = plan.api_url.removeprefix("https://")
    inside = ["socat", f"UNIX-LISTEN:{socket},fork,mode=600", f"TCP:{server}"]
    on_host = ["socat", f"TCP-LISTEN:{host_port},bind=127.0.0.1,reuseaddr,fork", f"UNIX-CONNECT:{socket}"]
    return inside, on_host
