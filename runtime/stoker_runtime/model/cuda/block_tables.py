"""Block tables that stay on the device: a row per request, and what a step has to add. No tensors."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stoker_runtime.core.step import ScheduledRequest


@dataclass(slots=True)
class _Row:
    """A request's row.

    Args:
        first: where it begins in all rows.
        table: the request's own list, which only grows; a request that starts again has another.
        num_sent: blocks of it that the device has, once it has stored all changes.
    """

    first: int
    table: list[int]
    num_sent: int = 0


class BlockTables:
    """Which rows there are, and what the device knows of them.

    Args:
        num_rows: most requests of one step.
        max_blocks: most blocks of one request.
    """

    def __init__(self, num_rows: int, max_blocks: int) -> None:
        self.num_rows, self.max_blocks = num_rows, max_blocks
        self._rows: dict[str, _Row] = {}  # by request id, the latest used last
        self._free: list[int] = []
        self.forget()

    def forget(self) -> None:
        """Take the device to know nothing: a step may have failed before it stored its changes."""
        self._rows = {}
        self._free = [row * self.max_blocks for row in range(self.num_rows)]

    def changes(self, requests: Sequence[ScheduledRequest]) -> tuple[dict[str, int], npt.NDArray[np.int32]]:
        """Give each request of a step a row, if need be one that no request of the step has.

        Returns:
            Where each request's row begins, by request id, and pairs of a place and the block to store there.
        """
        for request in requests:
            row = self._rows.pop(request.request_id, None)
            if row is not None:
                self._rows[request.request_id] = row
        changed = array("i")
        for request in requests:
            row = self._row(request)
            table = request.block_ids
            assert len(table) <= self.max_blocks, "a request has more blocks than its row"
            for index in range(row.num_sent, len(table)):
                changed.append(row.first + index)
                changed.append(table[index])
            row.num_sent = len(table)
        firsts = {request.request_id: self._rows[request.request_id].first for request in requests}
        return firsts, np.array(changed, dtype=np.int32)

    def _row(self, request: ScheduledRequest) -> _Row:
        row = self._rows.get(request.request_id)
        if row is not None and row.table is request.block_ids:
            return row
        if row is not None:
            first = row.first
        elif self._free:
            first = self._free.pop()
        else:
            first = self._rows.pop(next(iter(self._rows))).first
        row = self._rows[request.request_id] = _Row(first, request.block_ids)
        return row
