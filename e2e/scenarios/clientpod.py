"""A pod that plays the clients: Services by their DNS names, a new connection per request.

It runs the operator's image, which has Python and aiohttp, with the load client of bench/ mounted from a
ConfigMap.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios.files import BENCH
from scenarios.kube import Kube, Object
from scenarios.waiting import eventually

NAME = "clients"
RESTRICTED: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass
class RunningLoad:
    """Requests that go on until told to stop."""

    process: subprocess.Popen[str]

    def look(self) -> Object:
        """Return how far it is: `now_s` since it began, `e2e_s` of what has ended, and how many `failed`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the load client is gone: {self.process.communicate()[1]}"
        found: Object = json.loads(line)
        return found

    def stop(self, timeout_s: float = 180) -> Object:
        """Let the requests in flight end and return the client's report, with every request's own figures."""
        out, err = self.process.communicate("", timeout=timeout_s)
        assert out, f"the load client ended with {self.process.returncode} and no report: {err}"
        report: Object = json.loads(out)
        return report


class ClientPod:
    """The running pod."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace

    def ask(self, url: str, body: Object, timeout_s: float = 90) -> Any:
        """POST once from inside the pod and return status and answer."""
        command = ("python3", "/clients/ask.py", url)
        out = self.kube.kubectl(*self._exec(*command), text=json.dumps(body), timeout_s=timeout_s)
        return json.loads(out)

    def load(self, url: str, model: str, *options: str) -> Object:
        """Run the load client to its end and return its report, also when requests failed."""
        command = ("python3", "/clients/load.py", "--url", url, "--model", model, *options)
        return RunningLoad(self.kube.start_kubectl(*self._exec(*command))).stop()

    def start_load(self, url: str, model: str, *options: str) -> RunningLoad:
        """Start the load client; it goes on until `stop`."""
        fixed = ("--until-eof", "--records", "--url", url, "--model", model)
        return RunningLoad(
            self.kube.start_kubectl(*self._exec("python3", "/clients/load.py", *fixed, *options))
        )

    def _exec(self, *command: str) -> tuple[str, ...]:
        return ("exec", "--stdin", "--namespace", self.namespace, NAME, "--", *command)


def start(kube: Kube, namespace: str, image: str) -> ClientPod:
    """Apply the pod and its scripts and wait until it runs."""
    for manifest in (scripts(namespace), pod(namespace, image)):
        kube.apply(manifest)

    def is_running() -> bool:
        found = kube.get("Pod", NAME, namespace) or {}
        return bool(found.get("status", {}).get("phase") == "Running")

    eventually("the client pod runs", is_running, 60, lambda: kube.get("Pod", NAME, namespace))
    return ClientPod(kube, namespace)


def script_files() -> dict[str, Path]:
    """The scripts by their path inside the pod's folder."""
    files = {f"loadgen/{file.name}": file for file in sorted((BENCH / "loadgen").glob("*.py"))}
    return {"load.py": BENCH / "load.py", "ask.py": Path(__file__).with_name("ask.py"), **files}


def scripts(namespace: str) -> Object:
    """The ConfigMap of the scripts; keys have no slash, so the volume maps them back to paths."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": namespace},
        "data": {name.replace("/", "."): file.read_text() for name, file in script_files().items()},
    }


def pod(namespace: str, image: str) -> Object:
    """The pod, which waits to be entered."""
    items = [{"key": name.replace("/", "."), "path": name} for name in script_files()]
    container = {
        "name": NAME,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", "import signal; signal.pause()"],
        "securityContext": RESTRICTED,
        "volumeMounts": [{"name": "scripts", "mountPath": "/clients"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "scripts", "configMap": {"name": NAME, "items": items}}],
        },
    }
