"""`make test-kind`: the scenarios on kind, with the Docker engine that answers or one that is started for it.

Where neither is possible it says so and succeeds: the machine is at fault, not the product.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from cluster import dockerd, prerequisites
from cluster.api import ClusterError
from cluster.progress import say
from product import REPOSITORY

TESTS = ("tests/cluster/test_kind_cluster.py", "e2e/scenarios")
NOT_TESTED = "kind was not tested: "


def why_not() -> str | None:
    """What keeps this machine from running kind at all; None when nothing does."""
    if not dockerd.answers():
        problem = dockerd.lacks()
        return f"no Docker engine answers, and {problem}" if problem else prerequisites.no_client()
    return prerequisites.kind_lacks()


def run(arguments: Sequence[str]) -> int:
    """Run pytest on kind and return its exit status.

    Args:
        arguments: what pytest is asked for; by default the cluster's own tests and all scenarios.
    """
    problem = why_not()
    if problem:
        say(f"{NOT_TESTED}{problem}.")
        return 0
    command = [sys.executable, "-m", "pytest", "-m", "e2e and not gpu", *(arguments or TESTS)]
    with dockerd.engine() as engine:
        say(f"kind is tested with {engine}.")
        environment = {**os.environ, "STOKER_CLUSTER_BACKEND": "kind"}
        return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except ClusterError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
