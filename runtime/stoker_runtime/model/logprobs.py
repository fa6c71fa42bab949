"""Log-probabilities of rows of logits: of a chosen token each, and of the likeliest ones.

Logits are as the model gives them. Rows are looked at a few at a time, because what is made of them on the
way takes several times their own memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.messages import TokenLogprob
from stoker_runtime.model.picker import on_device

_PIECE = 1 << 22  # logits that are looked at together


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of some rows, where the logits are.

    Args:
        rows: which ones.
    Shapes:
        chosen [R] float32; ranks [R] integers from 1; values, token_ids [R, the likeliest that are wanted]
    """

    rows: Sequence[int]
    chosen: Tensor
    ranks: Tensor
    values: Tensor
    token_ids: Tensor

    def sent(self) -> Logprobs:
        """Begin to copy all of it to the host, see `to_host`."""
        return Logprobs(self.rows, *map(to_host, (self.chosen, self.ranks, self.values, self.token_ids)))

    def read(self, chosen_ids: Sequence[int]) -> Iterator[tuple[int, TokenLogprob]]:
        """Yield each row and its log-probabilities.

        Args:
            chosen_ids: the chosen token of every row there is, these and others.
        """
        parts = (part.tolist() for part in (self.chosen, self.ranks, self.values, self.token_ids))
        for row, chosen, rank, values, token_ids in zip(self.rows, *parts, strict=True):
            top = list(zip(token_ids, values, strict=True))
            yield row, TokenLogprob(token_id=chosen_ids[row], logprob=chosen, top=top, rank=rank)


def pieces(rows: Sequence[int], vocab_size: int) -> Iterator[Sequence[int]]:
    """Yield the rows, as many at a time as are looked at together."""
    count = max(1, _PIECE // vocab_size)
    for first in range(0, len(rows), count):
        yield rows[first : first + count]


def logprobs_of(logits: Tensor, chosen: Tensor, counts: Sequence[int]) -> list[Logprobs]:
    """Return the log-probabilities of all rows, those together that want as many.

    Args:
        logits: unnormalised scores.
        chosen: a token per row.
        counts: how many of the likeliest tokens each row wants, at most all.
    Shapes:
        logits [R, V] float32; chosen [R] integers on the same device
    """
    groups: dict[int, list[int]] = {}
    for row, count in enumerate(counts):
        groups.setdefault(min(count, logits.shape[1]), []).append(row)
    return [
        _of_piece(logits, chosen, rows, count)
        for count, all_rows in groups.items()
        for rows in pieces(all_rows, logits.shape[1])
    ]


def to_host(values: Tensor) -> Tensor:
    """Begin to copy a tensor; valid once an event that is recorded after this has come."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _of_piece(logits: Tensor, chosen: Tensor, rows: Sequence[int], count: int) -> Logprobs:
    is_run = rows[-1] - rows[0] == len(rows) - 1
    where = slice(rows[0], rows[-1] + 1) if is_run else on_device(rows, torch.long, logits.device)
    part, tokens = logits[where], chosen[where].long().unsqueeze(1)
    logprobs = part.log_softmax(dim=-1)
    ranks = (part > part.gather(1, tokens)).sum(dim=-1) + 1
    token_ids = _likeliest(part, count)
    return Logprobs(
        rows, logprobs.gather(1, tokens).squeeze(1), ranks, logprobs.gather(1, token_ids), token_ids
    )


def _likeliest(logits: Tensor, count: int) -> Tensor:
    """Return each row's likeliest tokens, of equally likely ones the first.

    Shapes:
        logits [R, V] float32 -> [R, count]

    What is compared are integers: a float's bits, in its order, above the token's id, descending. No two are
    equal, so nothing is left to the device's ways, and the shape does not depend on what is found.
    """
    size = logits.shape[1]
    if not count:
        return torch.empty(logits.shape[0], 0, dtype=torch.long, device=logits.device)
    bits = (logits + 0.0).view(torch.int32).long()  # a negative zero equals the other one
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).mul_(2**32)
    keys += torch.arange(size - 1, -1, -1, device=logits.device)
    found = keys.amax(dim=-1, keepdim=True) if count == 1 else keys.topk(count, dim=-1).values
    return size - 1 - (found & (2**32 - 1))
