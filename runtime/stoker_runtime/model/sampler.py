"""Picks the next token of each request from the step's logits.

What a request does not ask for costs nothing: an all-greedy step is one pass to find bad logits and one
argmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.core.step import SampledToken, ScheduledRequest
from stoker_runtime.messages import TokenLogprob
from stoker_runtime.model.picker import Picker, column, on_device, rows_where

_NOT_FINITE = "the model's logits are not finite numbers"


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of the rows that want some, where the logits are.

    Shapes:
        picked [R] float32; values, token_ids [R, the most that one wants], the likeliest first
    """

    rows: list[int]
    picked: Tensor
    values: Tensor
    token_ids: Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step's rows got; on a device it may still have to be computed.

    Args:
        requests: one per row.
        token_ids: -1 for a row that has none.
        logprobs: of the rows that want some.
        arrival: when all of it is on the host; None where it need not be waited for.
    Shapes:
        token_ids [B]
    """

    requests: Sequence[ScheduledRequest]
    token_ids: Tensor
    logprobs: Logprobs | None
    arrival: torch.cuda.Event | None = None

    def sent(self) -> Sampled:
        """Begin to copy all of it to the host, so that to wait for it is not to wait for later steps."""
        if self.token_ids.device.type != "cuda":
            return self
        logprobs = self.logprobs
        if logprobs is not None:
            parts = (logprobs.picked, logprobs.values, logprobs.token_ids)
            logprobs = Logprobs(logprobs.rows, *(_to_host(part) for part in parts))
        token_ids = _to_host(self.token_ids)
        arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrival.record()
        return Sampled(self.requests, token_ids, logprobs, arrival)

    def tokens(self) -> list[SampledToken]:
        """Wait for the device, and return one SampledToken per row."""
        if self.arrival is not None:
            self.arrival.synchronize()
        picked = self.token_ids.tolist()
        logprobs = {} if self.logprobs is None else _read(self.logprobs, self.requests, picked)
        return [
            SampledToken(request.request_id, picked[row], logprobs.get(row))
            if picked[row] >= 0
            else SampledToken(request.request_id, -1, error=_NOT_FINITE)
            for row, request in enumerate(self.requests)
        ]


def sample(logits: Tensor, requests: Sequence[ScheduledRequest], picker: Picker) -> Sampled:
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
        One token per row; a row with a NaN or infinite logit gets an error instead.

    Raises:
        ValueError: logits and requests disagree on B.
    """
    if logits.shape[0] != len(requests):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(requests)} requests")
    if not requests:
        return Sampled(requests, torch.empty(0, dtype=torch.int32), None)
    is_finite = picker.are_finite(logits)
    rows = rows_where(requests, lambda s: s.logprobs is not None)
    # Before anything changes them.
    raw = _take(logits, rows).log_softmax(dim=-1) if rows else None
    _bias(logits, requests)
    _penalize(logits, requests)
    # A penalty can overflow, and then no draw from the row means anything.
    picked = torch.where(is_finite, picker.pick(logits, requests), -1)
    if raw is None:
        return Sampled(requests, picked, None)
    values, token_ids = _likeliest(raw, max(requests[row].sampling.logprobs or 0 for row in rows))
    chosen = raw.gather(1, _take(picked, rows).clamp(min=0).long().unsqueeze(1)).squeeze(1)
    return Sampled(requests, picked, Logprobs(rows, chosen, values, token_ids))


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
        where = tuple(on_device(index, torch.long, logits.device) for index in (rows, token_ids))
        values = on_device(biases, logits.dtype, logits.device)
        logits.index_put_(where, values, accumulate=True)


def _counts(token_lists: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """How often each row's list holds each token, [R, V] float32."""
    counts = torch.zeros(len(token_lists), like.shape[1], device=like.device)
    size = like.shape[1]
    places = [row * size + token_id for row, token_ids in enumerate(token_lists) for token_id in token_ids]
    where = on_device(places, torch.long, like.device)
    counts.view(-1).index_add_(0, where, torch.ones(len(places), device=like.device))
    return counts


def _penalize(logits: Tensor, requests: Sequence[ScheduledRequest]) -> None:
    """Apply the three penalties to the rows that ask for them, in place."""
    rows = rows_where(requests, lambda s: s.repetition_penalty != 1.0)
    if rows:
        chosen = [requests[row] for row in rows]
        seen = _counts([[*r.prompt_token_ids, *r.output_token_ids] for r in chosen], logits) > 0
        penalty = column([r.sampling.repetition_penalty for r in chosen], logits)
        where = on_device(rows, torch.long, logits.device)
        part = logits[where]
        logits[where] = torch.where(seen, torch.where(part > 0, part / penalty, part * penalty), part)
    rows = rows_where(requests, lambda s: s.presence_penalty != 0.0 or s.frequency_penalty != 0.0)
    if rows:
        chosen = [requests[row] for row in rows]
        counts = _counts([r.output_token_ids for r in chosen], logits)
        frequency = column([r.sampling.frequency_penalty for r in chosen], logits)
        presence = column([r.sampling.presence_penalty for r in chosen], logits)
        logits[on_device(rows, torch.long, logits.device)] -= frequency * counts + presence * (counts > 0)


def _to_host(values: Tensor) -> Tensor:
    """Begin to copy a tensor; valid once an event that is recorded after this has come."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _take(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Return some rows of a tensor."""
    return values[on_device(rows, torch.long, values.device)]


def _likeliest(logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return each row's likeliest tokens, of equally likely ones the first: their values and their ids.

    Shapes:
        logprobs [R, V] float32 -> 2 x [R, count], or [R, V] where there are fewer

    What is compared are integers: a float's bits, in its order, above the token's id, descending. No two are
    equal, so nothing is left to the device's ways, and the shape does not depend on what is found.
    """
    size = logprobs.shape[1]
    bits = logprobs.view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    last_first = torch.arange(size - 1, -1, -1, device=logprobs.device)
    found = (ordered * 2**32 + last_first).topk(min(count, size), dim=-1).values
    token_ids = size - 1 - (found & (2**32 - 1))
    return logprobs.gather(1, token_ids), token_ids


def _read(
    logprobs: Logprobs, requests: Sequence[ScheduledRequest], picked: Sequence[int]
) -> dict[int, TokenLogprob]:
    """Return what each row that wants log-probabilities gets."""
    chosen, values, token_ids = (
        part.tolist() for part in (logprobs.picked, logprobs.values, logprobs.token_ids)
    )
    return {
        row: TokenLogprob(
            token_id=picked[row],
            logprob=chosen[index],
            top=list(zip(token_ids[index], values[index], strict=True))[: requests[row].sampling.logprobs],
        )
        for index, row in enumerate(logprobs.rows)
    }
