"""Steps recorded once and replayed: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable

import torch

Run = Callable[[], None]


class Recorder:
    """Turns functions that launch kernels into functions that replay them.

    The recordings share their scratch memory, which is safe because they run one after the other. What one
    leaves for the caller must therefore be in memory from outside. On a CPU, where nothing can be recorded,
    the function itself takes the recording's place.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._is_cuda else None

    def record(self, run: Run) -> Run:
        """Run a function twice, once to compile what it needs and once to record it."""
        if not self._is_cuda:
            return run
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph.replay
