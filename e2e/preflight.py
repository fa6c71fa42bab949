"""Says what this machine lacks, before anything is downloaded: `python3 e2e/preflight.py [--python-only]`.

The Makefile calls it first, so that nobody waits for downloads only to read that Docker or Go is missing. It
runs on a bare Python and needs no package.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
MIN_PYTHON = (3, 11)
GIB = 1 << 30
# Measured with the CPU build of torch: environment 1.5 GiB, images 3.3, two nodes 4.3; what Go keeps when it
# compiled Kubernetes 9.6. pip's default is the CUDA build; environment, image and each node hold it.
NEEDED_GIB = 10
NEEDED_TO_COMPILE_GIB = 10
NEEDED_FOR_CUDA_GIB = 20
NEEDED_AGAIN_GIB = 8  # once everything has been built: new layers, and the nodes


def python_problem(version: tuple[int, ...], has_ensurepip: bool, has_venv: bool) -> str | None:
    """Return what the Python that makes the virtual environment lacks.

    Args:
        version: its version.
        has_ensurepip: whether it can put pip into a new environment; Debian and Ubuntu package that apart.
        has_venv: whether the environment exists already.
    """
    have = ".".join(str(part) for part in version[:3])
    if version < MIN_PYTHON:
        return f"Python 3.11 or newer: this is {have}. Name another one with `make PYTHON=python3.X ...`"
    if not has_ensurepip and not has_venv:
        package = f"python{version[0]}.{version[1]}-venv"
        return f"Python's ensurepip module. On Debian and Ubuntu, as root: apt-get install {package}"
    return None


def cluster_problem(kind: str | None, native: str | None) -> str | None:
    """Return what both ways to run a cluster lack; None when there is one.

    Args:
        kind: what is missing for kind.
        native: what is missing for a cluster without Docker.
    """
    if kind is None or native is None:
        return None
    return (
        "a way to run Kubernetes, one of these:\n"
        f"    Docker and kind: {kind}\n"
        f"    root and Go, without Docker: {native}"
    )


def needed_gib(*, is_built: bool, is_cuda: bool, compiles: bool) -> int:
    """Return how much disk space a run takes.

    Args:
        is_built: whether environment and images are there from an earlier run.
        is_cuda: whether torch is the CUDA build.
        compiles: whether Kubernetes is compiled, because there is no kind.
    """
    if is_built:
        return NEEDED_AGAIN_GIB
    return NEEDED_GIB + NEEDED_TO_COMPILE_GIB * compiles + NEEDED_FOR_CUDA_GIB * is_cuda


def disk_problem(free_gib: float, needed: int, folder: Path) -> str | None:
    """Return what is missing on the disk that a folder is on."""
    if free_gib >= needed:
        return None
    hint = f". {NEEDED_FOR_CUDA_GIB} less with the CPU build of torch: see the README"
    is_cuda = needed >= NEEDED_GIB + NEEDED_FOR_CUDA_GIB
    return f"disk space: {free_gib:.1f} GiB are free at {folder}, {needed} are needed{hint * is_cuda}"


def problems(*, python_only: bool) -> list[str]:
    """Return everything that this machine lacks."""
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    found = python_problem(tuple(sys.version_info[:3]), has_ensurepip, (VENV / "bin" / "uv").exists())
    if found:
        return [found]  # what follows is not written for older ones
    if python_only:
        return []
    from cluster import prerequisites
    from cluster.versions import cache_dir

    wheels = Path(os.environ.get("STOKER_WHEELS") or REPOSITORY.parent / "shared" / "wheels")
    is_cuda = not os.environ.get("TORCH_INDEX_URL") and not any(wheels.glob("torch-*.whl"))
    is_built = (VENV / ".installed").exists() and any(cache_dir().glob("images/*.tar"))
    kind = prerequisites.kind_lacks()
    results = [cluster_problem(kind, prerequisites.native_lacks())]
    needed = needed_gib(is_built=is_built, is_cuda=is_cuda, compiles=kind is not None)
    folders = (REPOSITORY, existing(cache_dir()))
    for folder in {folder.stat().st_dev: folder for folder in folders}.values():
        results.append(disk_problem(shutil.disk_usage(folder).free / GIB, needed, folder))
    return [result for result in results if result]


def existing(folder: Path) -> Path:
    """Return the nearest folder above that is there."""
    return folder if folder.exists() else existing(folder.parent)


def main(arguments: list[str]) -> int:
    """Print what is missing; the exit status says whether anything is."""
    found = problems(python_only="--python-only" in arguments)
    if found:
        print("This machine lacks:", file=sys.stderr)
    for problem in found:
        print(f"  - {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
