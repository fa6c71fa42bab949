"""Removes what a native cluster left on the host, from its name alone, also after a crash."""

from __future__ import annotations

import re
import shutil

from cluster import cgroups, host, mounts
from cluster.plan import ClusterPlan, NodePlan


def remove_node(node: NodePlan) -> None:
    """Cut a node's power and clear away what it had."""
    for cgroup in (node.daemons_cgroup, node.cgroup):
        cgroups.kill_members(cgroup)
    # A container whose shim died just now may have been put into its cgroup after the first look at it.
    cgroups.kill_members(node.cgroup)
    host.delete_netns(node.netns)
    for cgroup in (node.daemons_cgroup, node.cgroup):
        cgroups.remove(cgroup)
    for folder in (node.run_dir, node.data_dir):
        if folder.exists():
            shutil.rmtree(folder)


def remove_everything(plan: ClusterPlan) -> None:
    """Remove every process, mount, namespace, cgroup and folder of a cluster."""
    cgroups.kill_members(plan.cgroup)
    for name in namespaces(plan):
        host.delete_netns(name)
    cgroups.remove(plan.cgroup)
    mounts.remove_made(plan)
    for folder in (plan.run_dir, plan.data_dir):
        if folder.exists():
            shutil.rmtree(folder)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def namespaces(plan: ClusterPlan) -> list[str]:
    """The network namespaces of a cluster that exist now."""
    own = re.compile(rf"stoker-{re.escape(plan.name)}-\d+")
    return [name for name in host.netns_names() if own.fullmatch(name)]
