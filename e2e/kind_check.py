"""`make test-kind`: the scenarios on kind, with the Docker engine that answers or one that is started for it.

Where neither is possible it says so and succeeds: the machine is at fault, not the product. `make test` ends
with a few of them, unless kind had all of its scenarios already.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import click

from cluster import dockerd, failures, prerequisites, shell
from cluster.api import ClusterError
from cluster.progress import say
from product import REPOSITORY

TESTS = ("tests/cluster/test_kind_cluster.py", "e2e/scenarios")
LIFECYCLE = "e2e/scenarios/test_lifecycle.py::test_"
FEW = (
    TESTS[0],
    f"{LIFECYCLE}example_answers_another_pod_through_its_service_name",
    f"{LIFECYCLE}rolling_update_keeps_the_old_pod_until_the_new_one_serves",
    f"{LIFECYCLE}delete_leaves_nothing_behind_even_while_the_operator_is_away",
)
NOT_TESTED = "kind was not tested: "


def why_not() -> str | None:
    """What keeps this machine from running kind at all; None when nothing does."""
    if not dockerd.answers():
        problem = dockerd.lacks()
        return f"no Docker engine answers, and {problem}" if problem else prerequisites.no_client()
    return prerequisites.kind_lacks()


def run(tests: Sequence[str]) -> int:
    """Run pytest on kind and return its exit status."""
    command = [sys.executable, "-m", "pytest", "-m", "e2e and not gpu and not long", *tests]
    with dockerd.engine() as engine:
        say(f"kind is tested with {engine}.")
        environment = {**os.environ, "STOKER_CLUSTER_BACKEND": "kind"}
        return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode


def run_few() -> int:
    """As `run`, at the end of `make test`: other tests went before, and may have had kind."""
    if os.environ.get("STOKER_CLUSTER_BACKEND") == "native":
        say(f"{NOT_TESTED}STOKER_CLUSTER_BACKEND is native.")
        return 0
    if dockerd.answers():
        say("kind had all scenarios already.")
        return 0
    try:
        dockerd.up()
    except ClusterError as error:
        dockerd.down()
        say(f"{NOT_TESTED}no Docker engine answers, and none could be started. {error}")
        return 0
    return run(FEW)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--few", is_flag=True, help="A few scenarios, unless kind had all of them already.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(few: bool, arguments: tuple[str, ...]) -> None:
    """Test on kind: what the ARGUMENTS for pytest name, by default its own tests and all scenarios."""
    problem = why_not()
    if problem:
        say(f"{NOT_TESTED}{problem}.")
        return
    sys.exit(run_few() if few else run(arguments or TESTS))


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except ClusterError as error:
        sys.exit(f"\n{failures.render(error, shell.again('make test-kind'))}")
    except (KeyboardInterrupt, click.Abort):
        sys.exit("\nstopped")
