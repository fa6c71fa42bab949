"""Records the picture in README: `make demo`, then `make picture`.

The commands of the picture are run against the demo's cluster as a user would type them. What they print is
kept in docs/demo.json, and docs/demo.svg is drawn from that; `--draw` only draws.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

import demo
import product
from cluster import host, shell
from cluster.api import Cluster, ClusterError
from cluster.backends import open_cluster
from cluster.native import free_ports
from cluster.progress import step

CAPTURE = product.REPOSITORY / "docs" / "demo.json"
PICTURE = CAPTURE.with_suffix(".svg")
COLUMNS = 108  # as wide as the longest command
TITLE = "Stoker: make demo"
READY_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Shown:
    """One command of the picture and what it printed."""

    command: str
    output: str


def record(cluster: Cluster) -> list[Shown]:
    """Run the commands on a cluster that `make demo` brought up.

    They are shown as a user types them; here the port is any free one, and paths are whole.

    Raises:
        ClusterError: one of them failed, or the model did not get ready in time.
    """
    manifest = str(demo.EXAMPLE.relative_to(product.REPOSITORY))
    with step("take the model away"):
        demo.kubectl(cluster, "delete", "modeldeployment", demo.MODEL, "--ignore-not-found", "--wait")
        demo.kubectl(cluster, "wait", "--for=delete", "pods", "--all", "--timeout=90s")
    with step("apply it and watch"):
        applied = demo.kubectl(cluster, "apply", "--filename", str(demo.EXAMPLE))
        watched = watch(cluster)
    with step("ask it"):
        answer = ask(cluster)
    return [
        Shown(f"kubectl apply --filename {manifest}", applied.rstrip()),
        Shown("kubectl get mdep --watch", watched),
        Shown(f"kubectl port-forward service/{demo.MODEL} 8000:80 &", ""),
        Shown(f'python examples/chat.py http://127.0.0.1:8000/v1 {demo.MODEL} "{demo.QUESTION}"', answer),
    ]


def watch(cluster: Cluster) -> str:
    """What `kubectl get mdep --watch` prints until the model is ready."""
    command = cluster.kubectl("get", "mdep", "--watch", f"--request-timeout={READY_TIMEOUT_S:.0f}s")
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                if re.match(rf"{demo.MODEL} +True ", line):
                    return "\n".join(lines)
        finally:
            process.kill()
    raise ClusterError(f"{demo.MODEL} did not get ready:\n" + "\n".join(lines), next_step=demo.LOOK)


@contextmanager
def forwarded(cluster: Cluster) -> Iterator[int]:
    """Forward a free port of this machine to the model's Service; yields the port."""
    (port,) = free_ports(1)
    command = cluster.kubectl("port-forward", f"service/{demo.MODEL}", f"{port}:80")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            probe = ["curl", "--silent", "--fail", f"http://127.0.0.1:{port}/v1/models"]
            host.wait_for("an answer of the Service", lambda: host.succeeds(probe), 30)
            yield port
        finally:
            process.kill()


def ask(cluster: Cluster) -> str:
    """What the example's client prints."""
    client = product.REPOSITORY / "examples" / "chat.py"
    with forwarded(cluster) as port:
        return host.run(
            [sys.executable, str(client), f"http://127.0.0.1:{port}/v1", demo.MODEL, demo.QUESTION],
            timeout_s=demo.ANSWER_TIMEOUT_S,
        ).strip()


def draw(shown: Sequence[Shown]) -> str:
    """Draw a terminal: dark in itself, so that it reads the same on dark and on light pages.

    Nothing in the picture is loaded from elsewhere: the fonts on the web that rich names are left out.
    """
    console = Console(
        record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor"
    )
    for part in shown:
        console.print(Text.assemble(("$ ", "bold green"), (part.command, "bold")))
        if part.output:
            console.print(Text(part.output))
    svg = console.export_svg(title=TITLE, unique_id="stoker")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> None:
    """Record, unless only drawing is asked for, and draw."""
    if "--draw" not in sys.argv:
        cluster = open_cluster(demo.NAME)
        shown = record(cluster)
        content = {"recorded": time.strftime("%Y-%m-%d"), "shown": [asdict(part) for part in shown]}
        CAPTURE.write_text(json.dumps(content, indent=1) + "\n")
    PICTURE.write_text(draw(load()))


def load(path: Path = CAPTURE) -> list[Shown]:
    """What was recorded last."""
    return [Shown(**part) for part in json.loads(path.read_text())["shown"]]


if __name__ == "__main__":
    sys.exit(shell.run("make picture", main))
