"""Removes what a native cluster left on the host, from its name alone, also after a crash."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from cluster import cgroups, host
from cluster.plan import ClusterPlan, NodePlan

# The kubelet links every container's log here, whatever its own folders are.
LOG_LINKS = Path("/var/log/containers")


def remove_node(node: NodePlan) -> None:
    """Cut a node's power and clear away what it had."""
    for cgroup in (node.daemons_cgroup, node.cgroup):
        cgroups.kill_members(cgroup)
    # A container whose shim died just now may have been put into its cgroup after the first look at it.
    cgroups.kill_members(node.cgroup)
    host.unmount_below([node.run_dir, node.data_dir])
    host.delete_netns(node.netns)
    for cgroup in (node.daemons_cgroup, node.cgroup):
        cgroups.remove(cgroup)
    remove_log_links(node.data_dir)
    for folder in (node.run_dir, node.data_dir):
        if folder.exists():
            shutil.rmtree(folder)


def remove_everything(plan: ClusterPlan) -> None:
    """Remove every process, mount, namespace, cgroup and folder of a cluster."""
    cgroups.kill_members(plan.cgroup)
    folders = [plan.run_dir, plan.data_dir]
    host.unmount_below(folders)
    for name in namespaces(plan):
        host.delete_netns(name)
    cgroups.remove(plan.cgroup)
    remove_log_links(plan.data_dir)
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def namespaces(plan: ClusterPlan) -> list[str]:
    """The network namespaces of a cluster that exist now."""
    own = re.compile(rf"stoker-{re.escape(plan.name)}-\d+")
    return [name for name in host.netns_names() if own.fullmatch(name)]


def log_links(data_dir: Path) -> list[Path]:
    """The links to container logs below a folder."""
    if not LOG_LINKS.is_dir():
        return []
    return [
        link for link in LOG_LINKS.iterdir() if link.is_symlink() and link.readlink().is_relative_to(data_dir)
    ]


def remove_log_links(data_dir: Path) -> None:
    """Remove them."""
    for link in log_links(data_dir):
        link.unlink(missing_ok=True)
