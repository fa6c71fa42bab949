"""The mount namespace of a node: what its daemons mount is invisible to the host and vanishes with their end.

A few paths are fixed in the kubelet and in the CNI library. Inside the namespace a folder of the node lies
over each, so that two nodes do not meet there, nor a node and a kubelet that the host may run for itself.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from cluster.host import locked, run
from cluster.plan import ClusterPlan, NodePlan
from cluster.versions import cache_dir

FIXED_FOLDERS = (Path("/var/lib/kubelet"), Path("/var/lib/cni"), Path("/var/log/containers"))

TUNABLES = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
LOCK = cache_dir() / "locks" / "fixed-folders"


def own_folder(node: NodePlan, fixed: Path) -> Path:
    """The node's folder that lies over a fixed path."""
    return node.data_dir / "fixed" / "-".join(fixed.parts[1:])


def unshared(node: NodePlan, command: list[str]) -> list[str]:
    """The command line that runs a command in a new mount namespace with the node's folders in place."""
    binds = [
        shlex.join(["mount", "--bind", str(own_folder(node, fixed)), str(fixed)]) for fixed in FIXED_FOLDERS
    ]
    # Shared again, but only within: volumes with mount propagation need that.
    script = " && ".join(["mount --make-rshared /", *binds, 'exec "$@"'])
    return ["unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", script, "sh", *command]


def joined(node: NodePlan, pid: int, command: list[str]) -> list[str]:
    """The command line that runs a kubelet in the mount namespace of a process.

    A kubelet sets a few kernel parameters, among them that the machine reboots after a kernel error. They
    belong to the host, so the kubelet alone sees files that say what it wants; its other mounts stay shared.
    """
    binds = [
        shlex.join(["mount", "--bind", str(tunable_file(node, name)), f"/proc/sys/{name}"])
        for name in TUNABLES
    ]
    script = " && ".join(["mount --make-rprivate /proc", *binds, 'exec "$@"'])
    apart = ["unshare", "--mount", "--propagation", "unchanged", "--", "sh", "-c", script, "sh"]
    return ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--", *apart, *command]


def tunable_file(node: NodePlan, name: str) -> Path:
    """The file that lies over a kernel parameter."""
    return node.data_dir / "tunables" / name.replace("/", ".")


def prepare(plan: ClusterPlan, node: NodePlan) -> None:
    """Make the node's folders and files, and those fixed folders that the host lacks."""
    (node.data_dir / "tunables").mkdir(parents=True)
    for name, value in TUNABLES.items():
        tunable_file(node, name).write_text(f"{value}\n")
    with locked(LOCK):
        for fixed in FIXED_FOLDERS:
            own_folder(node, fixed).mkdir(parents=True)
            if not fixed.exists():
                # Noted first: a crash between the two leaves a note too many, and not a folder too many.
                with open(notes_of_made(plan), "a") as notes:
                    notes.write(f"{fixed}\n")
                fixed.mkdir()


def notes_of_made(plan: ClusterPlan) -> Path:
    """Where the clusters of this machine remember together which fixed folders they made."""
    return plan.run_root / ".made-folders"


def remove_made(plan: ClusterPlan) -> None:
    """Remove the fixed folders that were made, unless another cluster uses them or they got content."""
    notes = notes_of_made(plan)
    with locked(LOCK):
        others = [path for path in plan.run_root.glob("[!.]*") if path != plan.run_dir]
        if not notes.exists() or others:
            return
        for name in dict.fromkeys(notes.read_text().split()):
            if Path(name).is_dir():
                run(["rmdir", "--ignore-fail-on-non-empty", name])
        notes.unlink()
