"""`make demo`: from nothing to a chat answer that streams out of a Kubernetes Service.

Every step is what a user would do by hand, and finds its own work done when it runs again.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import forecast
import product
from cluster import images, kind, leftovers, shell
from cluster.api import Cluster, ClusterError
from cluster.backends import open_cluster, standing
from cluster.progress import say, step

NAME = "demo"
EXAMPLE = product.REPOSITORY / "examples" / "smollm2.yaml"
MODEL = "smollm2"
QUESTION = "Why is the sky blue? Answer in two sentences."
READY_TIMEOUT_S = 180.0
# A container that failed is started again; what still stalls after the first few tries stays that way.
STALLED_TIMEOUT_S = 45.0
POLL_S = 0.25
ANSWER_TIMEOUT_S = 240.0  # a second or two, but minutes on a machine that is busy with something else
LOOK = (
    f"`.venv/bin/python e2e/cluster --name {NAME} kubectl describe mdep,pods` says why; `{{again}}` tries "
    "again, and `make demo-down` before it begins with a new cluster."
)
CLIENT = Path(__file__).with_name("demo_client.py")


@dataclass(frozen=True)
class Progress:
    """What a person wants to know of a ModelDeployment that is coming up."""

    is_ready: bool
    is_stalled: bool
    reason: str
    message: str


def progress_of(mdep: Mapping[str, Any]) -> Progress:
    """Read the conditions; those that speak of an older generation say nothing yet."""
    conditions = {
        condition["type"]: condition
        for condition in (mdep.get("status") or {}).get("conditions") or ()
        if condition.get("observedGeneration") == mdep["metadata"]["generation"]
    }
    ready = conditions.get("Ready")
    if ready is None:
        return Progress(False, False, "Pending", "waiting for the operator")
    is_stalled = conditions.get("Stalled", {}).get("status") == "True"
    return Progress(ready["status"] == "True", is_stalled, ready["reason"], ready.get("message", ""))


def kubectl(cluster: Cluster, *args: str, stdin: str | None = None) -> str:
    """Run kubectl and return what it printed.

    Raises:
        ClusterError: it failed; its output is in the text.
    """
    done = subprocess.run(
        cluster.kubectl(*args), input=stdin, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise ClusterError(f"kubectl {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def changes(
    observe: Callable[[], Progress], clock: Callable[[], float] = time.monotonic
) -> Iterator[Progress]:
    """Yield a ModelDeployment's progress each time it changes, the last one ready.

    Args:
        observe: looks once; called a few times a second.
        clock: the time in seconds.

    Raises:
        ClusterError: not ready in time, or stalled for long; the last reason and message are in the text.
    """
    start = clock()
    last = observe()
    moved_s = start
    yield last
    while not last.is_ready:
        waited_s, still_s = clock() - start, clock() - moved_s
        if waited_s > READY_TIMEOUT_S or (last.is_stalled and still_s > STALLED_TIMEOUT_S):
            raise ClusterError(
                f"{MODEL} is not ready after {waited_s:.0f} s. {last.reason}: {last.message}", next_step=LOOK
            )
        now = observe()
        if now != last:
            last, moved_s = now, clock()
            yield now


def look(cluster: Cluster) -> Progress:
    """Ask for the ModelDeployment once, a moment after the last time."""
    time.sleep(POLL_S)
    return progress_of(json.loads(kubectl(cluster, "get", "modeldeployment", MODEL, "--output=json")))


def chat(cluster: Cluster) -> None:
    """Stream an answer to the terminal, asked from inside the cluster by the Service's name.

    Raises:
        ClusterError: no answer came.
    """
    url = json.loads(kubectl(cluster, "get", "modeldeployment", MODEL, "--output=json"))["status"]["url"]
    base_url = url.removesuffix("/").removesuffix("/v1")
    selector = f"stoker.dev/deployment={MODEL},stoker.dev/serving=true"
    pods = kubectl(cluster, "get", "pods", f"--selector={selector}", "--output=name").split()
    if not pods:
        raise ClusterError(f"no pod serves {MODEL}, although it is ready.", next_step=LOOK)
    say(f"\n  {QUESTION}\n")
    asked = ["python", "-c", CLIENT.read_text(), base_url, MODEL, QUESTION]
    command = cluster.kubectl("exec", pods[0], "--container=engine", "--", *asked)
    try:
        done = subprocess.run(command, check=False, timeout=ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"the answer did not end within {ANSWER_TIMEOUT_S:.0f} s.") from error
    if done.returncode:
        raise ClusterError("the chat request failed; see above.", next_step=LOOK)


def next_steps(cluster: Cluster) -> str:
    """Return what to try now, ready to paste."""
    tools = shlex.quote(str(Path(cluster.tool("kubectl")).parent))
    return f"""
Try next:

  export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))} PATH={tools}:"$PATH"
  kubectl get mdep
  kubectl describe mdep {MODEL}
  kubectl explain mdep.spec

  kubectl port-forward service/{MODEL} 8000:80 &       # then, from this machine:
  curl -N http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{MODEL}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'
  make install && .venv/bin/python examples/chat.py http://127.0.0.1:8000/v1 {MODEL} "Why is the sky blue?"

  kubectl scale mdep {MODEL} --replicas 2              # and watch: kubectl get pods --watch
  kubectl edit mdep {MODEL}                            # say, maxNumSeqs: a rolling update, no request lost
  make demo-down                                       # removes the cluster and leaves nothing behind
"""


@click.group()
def main() -> None:
    """Serve SmolLM2 on a real Kubernetes cluster on this machine, or take that cluster down."""


def look_ahead(cluster: Cluster) -> list[forecast.Part]:
    """What has to be made for this cluster, and what is there."""
    is_kind = isinstance(cluster, kind.KindCluster)
    return forecast.parts(with_kind=is_kind, with_docker=images.docker_answers())


@main.command()
def up() -> None:
    """Cluster, images, chart, example, chat. Run it again at any time."""
    cluster = open_cluster(NAME)
    if any(not isinstance(other, type(cluster)) for other in standing(NAME)):
        raise ClusterError(
            "the demo's cluster is of the other back end.", next_step="`make demo-down`, then `{again}`."
        )
    say("Stoker's demo")
    leftovers.sweep()
    forecast.announce(look_ahead(cluster))
    archives = product.prepare(cluster)
    # One node: images of a gigabyte are unpacked on each, and what a second one shows no demo asks for.
    cluster.up(num_nodes=1)
    with step("load the images into the nodes"):
        for archive in archives.values():
            cluster.load_image(archive)
    with step("install the chart"):
        product.install_chart(cluster, archives)
    with step(f"kubectl apply -f {EXAMPLE.relative_to(product.REPOSITORY)}"):
        kubectl(cluster, "apply", "--filename", str(EXAMPLE))
    with step(f"wait until {MODEL} is ready"):
        for progress in changes(lambda: look(cluster)):
            say(f"    {progress.reason}: {progress.message}")
    with step("ask it"):
        chat(cluster)
    say(next_steps(cluster))


@main.command()
def down() -> None:
    """Remove the demo's cluster."""
    clusters = standing(NAME)
    if not clusters:
        say("There is no cluster of the demo.")
    # Docker may have come or gone since: the back end that made a cluster is not always the one of now.
    for cluster in clusters:
        with step("remove the cluster"):
            cluster.down()


def run() -> int:
    """Run the command; the exit status says whether it succeeded."""

    def body() -> None:
        try:
            main(standalone_mode=False)
        except click.Abort as error:
            raise KeyboardInterrupt from error
        except click.ClickException as error:
            raise ClusterError(error.format_message()) from error

    return shell.run("make demo-down" if "down" in sys.argv else "make demo", body)


if __name__ == "__main__":
    sys.exit(run())
