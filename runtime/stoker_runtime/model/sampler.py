"""Picks the next token of each request from the step's logits.

What a request does not ask for costs nothing: an all-greedy step is one pass to find bad logits and one
argmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.core.step import SampledToken, ScheduledRequest
from stoker_runtime.model.logprobs import Logprobs, logprobs_of, pieces, to_host
from stoker_runtime.model.masks import rule_out
from stoker_runtime.model.picker import Picker, column, on_device, rows_where
from stoker_runtime.model.scorer import NOT_FINITE

_NOTHING_LEFT = (
    "no token is left that may be picked: allowed_token_ids, bad_words and min_tokens rule out all of them"
)
_MOST, _LEAST = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step's rows got; on a device it may still have to be computed.

    Args:
        requests: one per row.
        token_ids: -1 for a row that has none.
        is_finite: of each row, whether all its logits were finite numbers.
        logprobs: of the rows that want some, in the order of `scored`.
        scored: those rows.
        arrival: when all of it is on the host; None where it need not be waited for.
    Shapes:
        token_ids, is_finite [B]
    """

    requests: Sequence[ScheduledRequest]
    token_ids: Tensor
    is_finite: Tensor
    logprobs: Sequence[Logprobs] = ()
    scored: Sequence[int] = ()
    arrival: torch.cuda.Event | None = None

    def sent(self) -> Sampled:
        """Begin to copy all of it to the host, so that to wait for it is not to wait for later steps."""
        if self.token_ids.device.type != "cuda":
            return self
        logprobs = [part.sent() for part in self.logprobs]
        token_ids, is_finite = to_host(self.token_ids), to_host(self.is_finite)
        arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrival.record()
        return Sampled(self.requests, token_ids, is_finite, logprobs, self.scored, arrival)

    def tokens(self) -> list[SampledToken]:
        """Wait for the device, and return one SampledToken per row."""
        if self.arrival is not None:
            self.arrival.synchronize()
        picked = self.token_ids.tolist()
        chosen = [picked[row] for row in self.scored]
        logprobs = {self.scored[at]: found for part in self.logprobs for at, found in part.read(chosen)}
        return [
            SampledToken(request.request_id, picked[row], logprobs.get(row))
            if picked[row] >= 0
            else SampledToken(request.request_id, -1, error=self._why_none(row))
            for row, request in enumerate(self.requests)
        ]

    def _why_none(self, row: int) -> str:
        return _NOTHING_LEFT if self.is_finite[row] else NOT_FINITE


def sample(logits: Tensor, requests: Sequence[ScheduledRequest], picker: Picker) -> Sampled:
    """Pick the next token of each request.

    The order of what a request may ask for: logit_bias, repetition penalty, presence and frequency penalties,
    tokens that are ruled out, temperature, min_p, top_k, top_p. Log-probabilities are of the raw logits.

    Args:
        logits: unnormalised scores; float32, changed in place.
        requests: one per row.
        picker: looks at the rows.
    Shapes:
        logits [B, V]

    Returns:
        One token per row; a row with a NaN or infinite logit, or without a token that may be picked, gets an
        error instead.

    Raises:
        ValueError: logits and requests disagree on B.
    """
    if logits.shape[0] != len(requests):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(requests)} requests")
    if not requests:
        return Sampled(requests, torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.bool))
    is_finite = picker.are_finite(logits)
    rows = rows_where(requests, lambda s: s.logprobs is not None)
    # Before anything changes them.
    raw = _take(logits, rows) if rows else None
    _bias(logits, requests)
    _penalize(logits, requests)
    rule_out(logits, requests)
    picked = torch.where(is_finite, picker.pick(logits, requests), -1)
    if raw is None:
        return Sampled(requests, picked, is_finite)
    counts = [requests[row].sampling.logprobs or 0 for row in rows]
    logprobs = logprobs_of(raw, _take(picked, rows).clamp(min=0), counts)
    return Sampled(requests, picked, is_finite, logprobs, rows)


def _bias(logits: Tensor, requests: Sequence[ScheduledRequest]) -> None:
    """Add logit_bias, in place."""
    entries = [
        (row, token_id, _bounded(bias))
        for row, request in enumerate(requests)
        for token_id, bias in request.sampling.logit_bias.items()
    ]
    if entries:
        rows, token_ids, biases = zip(*entries, strict=True)
        where = tuple(on_device(index, torch.long, logits.device) for index in (rows, token_ids))
        values = on_device(biases, logits.dtype, logits.device)
        logits[where] = (logits[where] + values).clamp_(-_MOST, _MOST)


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
    for some in pieces(rows, logits.shape[1]):
        _penalize_repetition(logits, some, [requests[row] for row in some])
    rows = rows_where(requests, lambda s: s.presence_penalty != 0.0 or s.frequency_penalty != 0.0)
    for some in pieces(rows, logits.shape[1]):
        _penalize_output(logits, some, [requests[row] for row in some])


def _penalize_repetition(logits: Tensor, rows: Sequence[int], requests: Sequence[ScheduledRequest]) -> None:
    seen = _counts([[*r.prompt_token_ids, *r.output_token_ids] for r in requests], logits) > 0
    # Of a penalty that float32 takes for 0 or for infinite, 0 times infinity would come.
    penalty = column([max(_LEAST, _bounded(r.sampling.repetition_penalty)) for r in requests], logits)
    where = on_device(rows, torch.long, logits.device)
    part = logits[where]
    penalized = torch.where(part > 0, part / penalty, part * penalty).clamp_(-_MOST, _MOST)
    logits[where] = torch.where(seen, penalized, part)


def _penalize_output(logits: Tensor, rows: Sequence[int], requests: Sequence[ScheduledRequest]) -> None:
    counts = _counts([r.output_token_ids for r in requests], logits)
    frequency = column([_bounded(r.sampling.frequency_penalty) for r in requests], logits)
    presence = column([_bounded(r.sampling.presence_penalty) for r in requests], logits)
    where = on_device(rows, torch.long, logits.device)
    part = logits[where]
    penalized = (part - (frequency * counts + presence)).clamp_(-_MOST, _MOST)
    logits[where] = torch.where(counts > 0, penalized, part)


def _bounded(value: float) -> float:
    """Return the nearest number that float32 has."""
    return max(-_MOST, min(_MOST, value))


def _take(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Return some rows of a tensor."""
    return values[on_device(rows, torch.long, values.device)]
