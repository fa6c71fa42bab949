"""How likely the tokens of prompts were, from the logits of the tokens before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.core.step import ScheduledRequest, ScoredPrompt
from stoker_runtime.model.logprobs import Logprobs, logprobs_of, to_host
from stoker_runtime.model.picker import Picker, on_device

NOT_FINITE = "the model's logits are not finite numbers"


@dataclass(frozen=True, slots=True)
class Scored:
    """What a step says of prompts; on a device it may still have to be computed.

    Args:
        requests: with tokens that are scored.
        is_finite: of each of their rows, one after the other, whether its logits are finite numbers.
        logprobs: of all rows.
        arrival: when all of it is on the host; None where it need not be waited for.
    """

    requests: Sequence[ScheduledRequest]
    is_finite: Tensor
    logprobs: Sequence[Logprobs]
    arrival: torch.cuda.Event | None = None

    def sent(self) -> Scored:
        """Begin to copy all of it to the host."""
        if self.is_finite.device.type != "cuda":
            return self
        logprobs, is_finite = [part.sent() for part in self.logprobs], to_host(self.is_finite)
        arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrival.record()
        return Scored(self.requests, is_finite, logprobs, arrival)

    def prompts(self) -> list[ScoredPrompt]:
        """Wait for the device, and return what each request gets."""
        if self.arrival is not None:
            self.arrival.synchronize()
        token_ids = _token_ids(self.requests)
        found = dict(item for part in self.logprobs for item in part.read(token_ids))
        is_finite: list[bool] = self.is_finite.tolist()
        prompts, first = [], 0
        for request in self.requests:
            rows = range(first, first + request.num_scored)
            first = rows.stop
            if all(is_finite[row] for row in rows):
                prompts.append(ScoredPrompt(request.request_id, [found[row] for row in rows]))
            else:
                prompts.append(ScoredPrompt(request.request_id, error=NOT_FINITE))
        return prompts


def score(logits: Tensor, requests: Sequence[ScheduledRequest], picker: Picker) -> Scored:
    """Look up how likely prompt tokens were.

    Args:
        logits: unnormalised scores behind the tokens before them; not changed.
        requests: with their tokens that are scored, whose rows follow one another.
        picker: looks at the rows.
    Shapes:
        logits [R, V] float32

    Raises:
        ValueError: logits and requests disagree on R.
    """
    token_ids = _token_ids(requests)
    if logits.shape[0] != len(token_ids):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(token_ids)} prompt tokens")
    counts = [
        request.sampling.prompt_logprobs or 0 for request in requests for _ in range(request.num_scored)
    ]
    chosen = on_device(token_ids, torch.long, logits.device)
    return Scored(requests, picker.are_finite(logits), logprobs_of(logits, chosen, counts))


def _token_ids(requests: Sequence[ScheduledRequest]) -> list[int]:
    return [token_id for request in requests for token_id in request.scored_token_ids]
