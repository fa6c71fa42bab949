"""A registry on loopback: go-containerregistry's, in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import build
from cluster.integration import child
from scenarios.waiting import eventually


@contextmanager
def running_registry(log: Path) -> Iterator[str]:
    """Run it on a free port and yield its host and port; it speaks plain HTTP.

    Args:
        log: where it writes.
    """

    def port() -> str | None:
        found = re.search(r"serving on port (\d+)", log.read_text())
        return found[1] if found else None

    with child([build.ensure("registry")["registry"], "-port=0"], log):
        yield f"localhost:{eventually('the registry listens', port, 20, log.read_text)}"
