"""What a native cluster remembers between two commands: which nodes run, which images they were given."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class State:
    """Facts that cannot be derived from the cluster's name.

    Attributes:
        nodes: indexes of the nodes that run, in ascending order.
        next_index: of the next node to be added; an index is never used twice.
        gpus_per_node: what each node claims to have of nvidia.com/gpu.
        host_port: where the API server answers on the host's loopback.
        archives: image archives that every node holds, in the order they were loaded.
        is_ready: whether `up` came to its end.
    """

    nodes: tuple[int, ...]
    next_index: int
    gpus_per_node: int
    host_port: int
    archives: tuple[str, ...] = ()
    is_ready: bool = False

    @staticmethod
    def path(run_dir: Path) -> Path:
        """Where it is kept."""
        return run_dir / "state.json"

    def save(self, run_dir: Path) -> None:
        """Replace what is on disk, all or nothing."""
        new = run_dir / ".state.json.new"
        new.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        new.rename(self.path(run_dir))


def load(run_dir: Path) -> State | None:
    """Read the state of a cluster, None when there is none."""
    path = State.path(run_dir)
    if not path.exists():
        return None
    fields = json.loads(path.read_text())
    return State(**{**fields, "nodes": tuple(fields["nodes"]), "archives": tuple(fields["archives"])})
