"""Networks of one family: the runtime and the operator as they start in a pod with IPv6 or IPv4 alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from server_builders import smollm2_path

from scenarios.waiting import eventually

pytestmark = pytest.mark.integration

NOBODY_LISTENS = 9
# Runs inside the network: the pages of probes, and what the operator asks a pod that drains.
_ASK = """
import asyncio, json, sys, urllib.request
from stoker_operator.cluster.inflight import HttpInFlightReader, Question, pod_url
address, port, *paths = sys.argv[1:]
for path in paths:
    with urllib.request.urlopen(pod_url(address, int(port), path), timeout=5) as answer:
        answer.read()
async def load():
    reader = HttpInFlightReader()
    found = await reader.read({"pod": Question(pod_url(address, int(port), "/load"))})
    await reader.close()
    return found
print(json.dumps({name: answer.body.decode() for name, answer in asyncio.run(load()).items() if answer.body}))
"""


@dataclass(frozen=True)
class Network:
    """A network namespace with one address."""

    name: str
    address: str

    def command(self, *command: str) -> list[str]:
        """Return the command line that runs something inside."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--", *command]

    def run(self, *command: str) -> str:
        """Run something inside to its end."""
        done = subprocess.run(self.command(*command), capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def daemon(self, log: Path, environment: Mapping[str, str], *arguments: str) -> Iterator[None]:
        """Run a Python module inside for as long as the block lasts."""
        with log.open("wb") as output:
            command = self.command(sys.executable, "-m", *arguments)
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=output, stderr=output
            )
        try:
            yield
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(timeout=60)

    def is_asked(self, port: int, *paths: str) -> dict[str, str] | None:
        """Ask for pages from inside; None until all of them answer."""
        command = self.command(sys.executable, "-c", _ASK, self.address, str(port), *paths)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return None if done.returncode else json.loads(done.stdout)


# How a loopback interface gets the one address of a network, and loses all of the other family.
FAMILIES = {
    "ipv6": ("fd00:aa::1", ["ip -4 addr flush dev lo"]),
    "ipv4": ("10.99.0.1", ["echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"]),
}


@pytest.fixture(params=sorted(FAMILIES))
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("only root makes a network namespace")
    address, commands = FAMILIES[request.param]
    made = Network(f"stoker-{uuid.uuid4().hex[:8]}", address)
    with ExitStack() as undo:
        done = subprocess.run(["ip", "netns", "add", made.name], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no network namespace: {done.stderr.strip()}")
        undo.callback(subprocess.run, ["ip", "netns", "delete", made.name], check=True, timeout=30)
        prefix = "128" if ":" in address else "32"
        for command in ["ip link set lo up", *commands, f"ip addr add {address}/{prefix} dev lo"]:
            made.run("sh", "-ec", command)
        yield made


def test_the_runtime_answers_in_it(network: Network, tmp_path: Path) -> None:
    log = tmp_path / "log"
    sizes = ("--max-model-len=512", "--dtype=float32", "--shutdown-delay-s=0")
    arguments = ("stoker_runtime", "serve", f"--model={smollm2_path()}", "--device=cpu", *sizes)
    with network.daemon(log, {}, *arguments):
        found = eventually(
            "the runtime is ready",
            lambda: network.is_asked(8000, "/ready", "/health"),
            120,
            lambda: log.read_text()[-2000:],
        )
    assert json.loads(found["pod"])["in_flight"] == 0


def test_the_operator_answers_in_it(network: Network, tmp_path: Path) -> None:
    host = f"[{network.address}]" if ":" in network.address else network.address
    config = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://{host}:{NOBODY_LISTENS}"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    environment = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "STOKER_RUNTIME_IMAGE": "runtime:test"}
    log = tmp_path / "log"
    with network.daemon(log, environment, "stoker_operator", "run"):
        eventually("it is alive", lambda: network.is_asked(8080, "/healthz") is not None, 60, log.read_text)
        assert network.is_asked(8081, "/metrics") is not None
