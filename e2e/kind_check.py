"""`make test-kind`: the scenarios on kind, with the Docker engine that answers or one that is started for it.

    python3 e2e/kind_check.py --can     whether they can run here; 3 where they cannot. Needs no package
    python e2e/kind_check.py [TESTS]    them, or what else pytest is to run
    python e2e/kind_check.py --few      a few, unless kind had all scenarios already: the end of `make test`

Where neither is possible it says so and succeeds: the machine is at fault, not the product.
"""

import python_version  # noqa: F401  (ends this script where the Python is too old)

# isort: split
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import dockerd, failures, prerequisites, shell
from cluster.api import ClusterError
from cluster.progress import say

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = ("tests/cluster/test_kind_cluster.py", "e2e/scenarios")
LIFECYCLE = "e2e/scenarios/test_lifecycle.py::test_"
FEW = (
    f"{LIFECYCLE}example_answers_another_pod_through_its_service_name",
    f"{LIFECYCLE}rolling_update_keeps_the_old_pod_until_the_new_one_serves",
    f"{LIFECYCLE}delete_leaves_nothing_behind_even_while_the_operator_is_away",
)
NOT_TESTED = "kind was not tested: "
CANNOT = 3


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
        with subprocess.Popen(command, cwd=REPOSITORY, env=environment) as pytest:
            try:
                return pytest.wait()
            except KeyboardInterrupt:
                pytest.wait()  # it takes its clusters down
                raise


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


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say, and return the exit status.

    Raises:
        ClusterError: no engine could be started.
    """
    problem = why_not()
    is_look = list(arguments) == ["--can"]
    if problem:
        say(f"{NOT_TESTED}{problem}.")
        return CANNOT if is_look else 0
    if is_look:
        return 0
    return run_few() if list(arguments) == ["--few"] else run(arguments or TESTS)


def guarded(arguments: Sequence[str]) -> int:
    """As `main`; what fails or is told to end says what to do next."""
    again = shell.again("make test-kind")
    try:
        with shell.terminable():
            return main(arguments)
    except ClusterError as error:
        say(f"\n{failures.render(error, again)}")
        return 1
    except KeyboardInterrupt:
        say(f"\n{failures.line(f'`{again}` begins again.')}")
        return shell.INTERRUPTED


if __name__ == "__main__":
    sys.exit(guarded(sys.argv[1:]))
