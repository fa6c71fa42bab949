"""Steps of decodes alone, recorded once per number of rows and replayed: one launch instead of hundreds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch

Run = Callable[[], None]


def buckets(max_num_seqs: int) -> list[int]:
    """Return the numbers of rows to record; a step takes the smallest that holds it."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, max_num_seqs, 16)]
    return [*(size for size in sizes if size < max_num_seqs), max_num_seqs]


def bucket_for(num_rows: int, sizes: list[int]) -> int | None:
    """Return the smallest of the ascending sizes that holds so many rows."""
    index = bisect_left(sizes, num_rows)
    return sizes[index] if index < len(sizes) else None


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
