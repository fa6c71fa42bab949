"""Rules tokens out before one is picked: end tokens before min_tokens, bad words, all that is not allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stoker_runtime.core.step import ScheduledRequest
from stoker_runtime.model.picker import on_device


def rule_out(logits: Tensor, requests: Sequence[ScheduledRequest]) -> None:
    """Set the logits of tokens that must not be picked to minus infinity, in place.

    Shapes:
        logits [B, V] float32, a row per request
    """
    allowed = [row for row, request in enumerate(requests) if request.allowed_token_ids is not None]
    if allowed:
        _keep(logits, allowed, [requests[row] for row in allowed])
    entries = [
        (row, token_id)
        for row, request in enumerate(requests)
        if request.masked_token_ids or request.sampling.bad_words_token_ids
        for token_id in ruled_out(request)
    ]
    if entries:
        where = tuple(on_device(index, torch.long, logits.device) for index in zip(*entries, strict=True))
        logits[where] = -math.inf


def ruled_out(request: ScheduledRequest) -> Sequence[int]:
    """Return the tokens that a request must not get now.

    Those that end it stay possible where nothing else is allowed: to end early is better than no token.
    """
    bad = last_of_bad_words(request.sampling.bad_words_token_ids, request.output_token_ids)
    allowed, masked = request.allowed_token_ids, request.masked_token_ids
    # No set is made of many: they are not all ruled out by a few.
    if masked and allowed is not None and len(allowed) <= len(bad) + len(masked):
        masked = masked if set(allowed) - {*bad, *masked} else ()
    return [*bad, *masked]


def last_of_bad_words(bad_words: Sequence[Sequence[int]], output: Sequence[int]) -> list[int]:
    """Return the tokens that would complete one of these sequences behind the output."""
    found = []
    for token_ids in bad_words:
        before = len(token_ids) - 1
        if before > len(output) or before < 0:
            continue
        if all(token_ids[index] == output[index - before] for index in range(before)):
            found.append(token_ids[-1])
    return found


def _keep(logits: Tensor, rows: Sequence[int], requests: Sequence[ScheduledRequest]) -> None:
    """Rule out all but the allowed tokens of some rows."""
    ids = [_as_tensor(request) for request in requests]
    counts = torch.tensor([len(own) for own in ids])
    token_ids, of_rows = torch.cat(ids), torch.repeat_interleave(torch.tensor(rows), counts)
    where = tuple(_moved(index, logits.device) for index in (of_rows, token_ids))
    kept = logits[where]
    logits[on_device(rows, torch.long, logits.device)] = -math.inf
    logits[where] = kept


def _as_tensor(request: ScheduledRequest) -> Tensor:
    """Return a request's allowed tokens as they lie in memory; they may be most of a vocabulary."""
    ids = request.allowed_token_ids
    return torch.frombuffer(ids, dtype=torch.long) if ids else torch.empty(0, dtype=torch.long)


def _moved(values: Tensor, device: torch.device) -> Tensor:
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)
