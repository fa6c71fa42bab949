"""What each command needs and how long it takes: the one table of `make help`, `make preflight` and README.

`make help` prints it, with whatever Python there is: only the standard library, and nothing newer than 3.6.
Times are for 2 cores without AVX-512, as they were measured, some beside other load; those of tests are
sums of measured parts, with an estimate for what `make test-long` plays and nobody has timed. Disk space is
what a first run adds, with the CPU build of torch.
"""

import sys
from typing import NamedTuple

KIND, NATIVE, ANY, ENGINE, NONE = "kind", "native", "any", "engine", "none"
NEEDED = {
    KIND: "Docker; kind, kubectl, helm or Go",
    NATIVE: "root, Go 1.26, Debian or Ubuntu",
    ANY: "either of the two",
    ENGINE: "Docker, or root on Debian or Ubuntu",
    NONE: "Python 3.11",
}


class Need(NamedTuple):
    """What one command takes.

    Attributes:
        command: as a person types it.
        cluster: what must be able to run a cluster here: KIND, NATIVE, ANY of them, kind with a Docker
            ENGINE that may be started for it, or NONE.
        cold_min: minutes with nothing built or downloaded.
        warm_s: seconds when an earlier run left everything ready.
        disk_gib: disk space that a first run takes.
        memory_gib: memory that must be available.
    """

    command: str
    cluster: str
    cold_min: int
    warm_s: int
    disk_gib: int
    memory_gib: int


NEEDS = (
    Need("make install", NONE, 3, 1, 4, 1),
    Need("make test-fast", NONE, 8, 300, 4, 4),
    Need("make demo", KIND, 18, 60, 16, 4),
    Need("make demo", NATIVE, 12, 60, 20, 6),
    Need("make test", ANY, 50, 1860, 26, 8),
    Need("make test-long", ANY, 76, 3600, 26, 8),
    Need("make test-kind", ENGINE, 41, 1260, 24, 8),
)
# What a first run with pip's default, the CUDA build of torch, takes more.
CUDA_GIB = 20
# What a run takes that finds everything built: new layers, and the nodes.
AGAIN_GIB = 8
# What the environment takes, with the CPU build of torch: all that grows beside the sources.
VENV_GIB = 5
# What Go's caches take of a first run that compiles: 3 as measured, and what they grow in between.
GO_GIB = 5

# Seconds on 2 quiet cores, downloads included, that the parts of a first run take.
DEMO_INSTALL_S = 20
PACKAGES_S = 60
BASE_IMAGE_S = 30
TOOLS_S = {"kube": 340, "containerd": 50, "cni": 4, "pause": 1}
IMAGES_S = {"stoker-operator": 45, "stoker-runtime": 150, "smollm2": 5, "stoker-pause": 1}
# With everything built: cluster, images into the nodes, chart, model, answer.
DEMO_S = 55
OTHER_S = 60  # what has no figure above


def duration(seconds: float) -> str:
    """A time in words, no more exact than it is known."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 90:
        return f"{round(seconds / 5) * 5} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def row(need: Need) -> "list[str]":
    """The cells of one command, as they are printed everywhere."""
    return [
        need.command,
        NEEDED[need.cluster],
        duration(need.cold_min * 60),
        duration(need.warm_s),
        f"{need.disk_gib} GiB",
        f"{need.memory_gib} GiB",
    ]


HEADER = ["command", "needs", "first run", "again", "disk", "memory"]


def text() -> str:
    """The table for a terminal."""
    rows = [HEADER, *(row(need) for need in NEEDS)]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(HEADER))]
    lines = ["  ".join(cells[i].ljust(widths[i]) for i in range(len(HEADER))) for cells in rows]
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def markdown() -> str:
    """The table for README."""
    rows = [HEADER, ["---"] * len(HEADER)]
    rows += [[f"`{cells[0]}`", *cells[1:]] for cells in map(row, NEEDS)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


if __name__ == "__main__":
    print(markdown() if "--markdown" in sys.argv else text())
