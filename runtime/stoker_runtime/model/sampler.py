"""Picks the next token of each request from the step's logits.

What a request does not ask for costs nothing: an all-greedy step is one pass to find bad logits and one
argmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stoker_runtime.core.step import SampledToken, ScheduledRequest
from stoker_runtime.messages import TokenLogprob
from stoker_runtime.model.picker import Picker, column, rows_where

_NOT_FINITE = "the model's logits are not finite numbers"


def sample(logits: Tensor, requests: Sequence[ScheduledRequest], picker: Picker) -> list[SampledToken]:
    """Pick the next token of each request.

    The order of what a request may ask for: logit_bias, masked tokens, repetition penalty, presence and
    frequency penalties, temperature, min_p, top_k, top_p. Log-probabilities are of the raw logits.

    Args:
        logits: unnormalised scores; float32, changed in place.
        requests: one per row.
        picker: looks at the rows.
    Shapes:
        logits [B, V]

    Returns:
        One SampledToken per row; a row with a NaN or infinite logit gets an error instead of a token.

    Raises:
        ValueError: logits and requests disagree on B.
    """
    if logits.shape[0] != len(requests):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(requests)} requests")
    if not requests:
        return []
    is_finite = picker.are_finite(logits)
    raw = _raw_logprobs(logits, requests)
    _bias(logits, requests)
    _penalize(logits, requests)
    # A penalty can overflow, and then no draw from the row means anything.
    picked = [
        token_id if ok else -1 for token_id, ok in zip(picker.pick(logits, requests), is_finite, strict=True)
    ]
    logprobs = _logprobs(raw, requests, picked)
    return [
        SampledToken(request.request_id, picked[row], logprobs.get(row))
        if picked[row] >= 0
        else SampledToken(request.request_id, -1, error=_NOT_FINITE)
        for row, request in enumerate(requests)
    ]


def _bias(logits: Tensor, requests: Sequence[ScheduledRequest]) -> None:
    """Add logit_bias and rule out masked tokens, in place."""
    entries = [
        (row, token_id, bias)
        for row, request in enumerate(requests)
        for token_id, bias in (
            *request.sampling.logit_bias.items(),
            *((token_id, -math.inf) for token_id in request.masked_token_ids),
        )
    ]
    if entries:
        rows, token_ids, biases = zip(*entries, strict=True)
        where = (torch.tensor(rows, device=logits.device), torch.tensor(token_ids, device=logits.device))
        values = torch.tensor(biases, dtype=logits.dtype, device=logits.device)
        logits.index_put_(where, values, accumulate=True)


def _counts(token_lists: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """How often each row's list holds each token, [R, V] float32."""
    counts = torch.zeros(len(token_lists), like.shape[1], device=like.device)
    for row, token_ids in enumerate(token_lists):
        where = torch.tensor(token_ids, dtype=torch.long, device=like.device)
        counts[row].index_add_(0, where, torch.ones(len(token_ids), device=like.device))
    return counts


def _penalize(logits: Tensor, requests: Sequence[ScheduledRequest]) -> None:
    """Apply the three penalties to the rows that ask for them, in place."""
    rows = rows_where(requests, lambda s: s.repetition_penalty != 1.0)
    if rows:
        chosen = [requests[row] for row in rows]
        seen = _counts([[*r.prompt_token_ids, *r.output_token_ids] for r in chosen], logits) > 0
        penalty = column([r.sampling.repetition_penalty for r in chosen], logits)
        part = logits[rows]
        logits[rows] = torch.where(seen, torch.where(part > 0, part / penalty, part * penalty), part)
    rows = rows_where(requests, lambda s: s.presence_penalty != 0.0 or s.frequency_penalty != 0.0)
    if rows:
        chosen = [requests[row] for row in rows]
        counts = _counts([r.output_token_ids for r in chosen], logits)
        frequency = column([r.sampling.frequency_penalty for r in chosen], logits)
        presence = column([r.sampling.presence_penalty for r in chosen], logits)
        logits[rows] -= frequency * counts + presence * (counts > 0)


def _raw_logprobs(logits: Tensor, requests: Sequence[ScheduledRequest]) -> tuple[list[int], Tensor] | None:
    """Log-softmax of the rows whose requests want log-probabilities, before anything changes them."""
    rows = rows_where(requests, lambda s: s.logprobs is not None)
    return (rows, logits[rows].log_softmax(dim=-1)) if rows else None


def _logprobs(
    raw: tuple[list[int], Tensor] | None, requests: Sequence[ScheduledRequest], picked: Sequence[int]
) -> dict[int, TokenLogprob]:
    if raw is None:
        return {}
    rows, logprobs = raw
    chosen = logprobs.gather(1, torch.tensor([[max(picked[row], 0)] for row in rows], device=logprobs.device))
    counts = [requests[row].sampling.logprobs or 0 for row in rows]
    return {
        row: TokenLogprob(token_id=picked[row], logprob=chosen[index].item(), top=top)
        for index, (row, top) in enumerate(zip(rows, _likeliest(logprobs, counts), strict=True))
    }


def _likeliest(logprobs: Tensor, counts: Sequence[int]) -> list[list[tuple[int, float]]]:
    """Return each row's likeliest tokens, of equally likely ones the first.

    Shapes:
        logprobs [R, V], counts [R]
    """
    num_top = min(max(counts), logprobs.shape[1])
    found: list[list[tuple[int, float]]] = [[] for _ in counts]
    if num_top:
        last = logprobs.topk(num_top, dim=-1).values[:, -1:]
        rows, token_ids = (logprobs >= last).nonzero(as_tuple=True)  # in the order of the vocabulary
        values = logprobs[rows, token_ids].tolist()
        for row, token_id, value in zip(rows.tolist(), token_ids.tolist(), values, strict=True):
            found[row].append((token_id, value))
    return [
        sorted(tokens, key=lambda token: -token[1])[:count]
        for tokens, count in zip(found, counts, strict=True)
    ]
