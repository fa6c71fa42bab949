"""Steps recorded once and replayed: one launch instead of hundreds."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

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
        self._device = device
        if self._is_cuda:
            self._pool = torch.cuda.graph_pool_handle()
            # One for all: cuBLAS keeps a workspace for each stream that it ever ran on, 32 MiB on a Hopper.
            # Made outside of a recording it also stays outside of the memory that recordings share.
            self._aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, run: Run) -> Run:
        """Run a function twice, once to compile what it needs and once to record it.

        Raises:
            RuntimeError: the function does what cannot be recorded; everything else works as before.
        """
        if not self._is_cuda:
            return run
        before = torch.cuda.current_stream(self._device)
        self._aside.wait_stream(before)
        with torch.cuda.stream(self._aside):
            run()
        before.wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._aside)
        with self._recovering(before), _without_collections(), recording:
            run()
        return graph.replay

    @contextlib.contextmanager
    def _recovering(self, before: torch.cuda.Stream) -> Iterator[None]:
        """Undo what a recording that fails leaves behind."""
        try:
            yield
        except BaseException:
            torch.cuda.set_stream(before)
            # Where the end of a recording raises, PyTorch's allocator takes it to be underway, and refuses to
            # give memory back from then on. Else the graph has done both, and the first call raises.
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(before.device_index, self._pool)
                torch._C._cuda_releasePool(before.device_index, self._pool)
            raise


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Keep the garbage collector off: what it frees may make calls that end a recording."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
