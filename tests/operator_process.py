"""The operator as a process of its own, outside the cluster it serves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.integration import ControlPlane


@contextmanager
def running_operator(plane: ControlPlane, log: Path) -> Iterator[None]:
    """Run the operator; it must still run in the end and leave with status 0 when told to."""
    env = {**os.environ, "KUBECONFIG": str(plane.kubeconfig), "STOKER_RUNTIME_IMAGE": "localhost/runtime:1"}
    with log.open("ab") as output:
        command = [sys.executable, "-m", "stoker_operator", "run"]
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        yield
        assert process.poll() is None, log.read_text()[-4000:]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, log.read_text()[-4000:]
    finally:
        process.kill()
        process.wait(timeout=30)
