"""Package the chart as it is published; `make chart` runs this.

The same sources give the same bytes, whenever and wherever they are packaged: a digest says what is in it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from cluster import build, shell
from cluster.api import ClusterError
from stoker_operator import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
CHART = REPOSITORY / "charts" / "stoker"
DESTINATION = REPOSITORY / "dist" / "charts"
# The time of every file in the archive, in seconds since 1970, unless SOURCE_DATE_EPOCH says another: 1980.
EPOCH_S = "315532800"


def package(destination: Path) -> Path:
    """Write the chart's archive into a folder and return it; chart and images have the package's version.

    Raises:
        ClusterError: helm could not be built, or refused; its output is in the text.
    """
    destination.mkdir(parents=True, exist_ok=True)
    # The pinned helm and no other: it gives the files this time, where older ones keep their own.
    program = build.ensure("charts")["helm"]
    command = [program, "package", str(CHART), "--version", __version__, "--app-version", __version__]
    done = subprocess.run(
        [*command, "--destination", str(destination)],
        env={"SOURCE_DATE_EPOCH": EPOCH_S, **os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"helm package: {done.stdout.strip()}")
    return destination / f"stoker-{__version__}.tgz"


def main() -> None:
    """Package, and say what comes next."""
    archive = package(DESTINATION)
    shown = archive.relative_to(REPOSITORY)
    where = "oci://REGISTRY/stoker-dev/charts"
    print(f"{shown}  sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}")
    print(f"To publish it:  helm push {shown} {where}")
    print(
        f"To install it:  helm install stoker {where}/stoker --version {__version__} "
        "--set global.imageRegistry=REGISTRY ..."
    )


if __name__ == "__main__":
    sys.exit(shell.run("make chart", main))
