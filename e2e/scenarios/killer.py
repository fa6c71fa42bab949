"""SIGKILL for the operator at a chosen moment.

A container's first process cannot be killed from inside, so a pod in the node's own process namespace does
it: it finds the processes of a container id by their control group.
"""

from __future__ import annotations

import json
import subprocess

from scenarios.kube import Kube, Object
from scenarios.waiting import eventually

NAME = "killer"
SCRIPT = """
import json, os, pathlib, signal, sys
for line in sys.stdin:
    wanted, killed = line.strip(), []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "cgroup").read_text():
                os.kill(int(entry.name), signal.SIGKILL)
                killed.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended in the meantime
    print(json.dumps(killed), flush=True)
"""


class Killer:
    """One killer per node, each with an open line to it so that a kill takes milliseconds."""

    def __init__(self, kube: Kube, namespace: str, image: str, nodes: list[str]) -> None:
        for node in nodes:
            kube.apply(_pod(namespace, image, node))

        def all_run() -> bool:
            phases = [pod.get("status", {}).get("phase") for pod in kube.get_all("Pod", namespace)]
            return phases == ["Running"] * len(nodes)

        eventually("the killer pods run", all_run, 60)
        flags = ("exec", "--stdin", "--namespace", namespace)
        self._lines: dict[str, subprocess.Popen[str]] = {
            node: kube.start_kubectl(*flags, f"{NAME}-{node}", "--", "python3", "-c", SCRIPT)
            for node in nodes
        }

    def kill(self, pod: Object) -> int:
        """Kill all processes of a pod's containers and return how many that were."""
        num_killed = 0
        for entry in pod.get("status", {}).get("containerStatuses", []):
            container_id = entry.get("containerID", "").rpartition("/")[2]
            if not container_id:
                continue
            line = self._lines[pod["spec"]["nodeName"]]
            assert line.stdin is not None
            assert line.stdout is not None
            line.stdin.write(f"{container_id}\n")
            line.stdin.flush()
            answer = line.stdout.readline()
            assert answer, f"the killer is gone: {line.communicate()[1]}"
            num_killed += len(json.loads(answer))
        return num_killed

    def close(self) -> None:
        """End the open lines; the pods behind them go with their namespace."""
        for line in self._lines.values():
            with line:
                line.kill()


def _pod(namespace: str, image: str, node: str) -> Object:
    container = {
        "name": NAME,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", "import signal; signal.pause()"],
        "securityContext": {"runAsUser": 0, "privileged": True},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{NAME}-{node}", "namespace": namespace},
        "spec": {
            "hostPID": True,
            "nodeName": node,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
        },
    }
