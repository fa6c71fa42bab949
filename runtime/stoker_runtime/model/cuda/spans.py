"""Chunks as the host knows them, for operators that take one at a time. Pure: no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stoker_runtime.model.cuda.step_layout import Integers

# An operator per chunk and layer: with shorter chunks the host would launch longer than the device computes.
FEWEST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Span:
    """A request's chunk.

    Args:
        first_row: of the step's tokens.
        num_tokens: that are computed.
        num_computed: tokens before them.
        first_block: where the request's block table begins in all tables.
    """

    first_row: int
    num_tokens: int
    num_computed: int
    first_block: int

    @property
    def context(self) -> int:
        """Tokens that its last one sees, itself included."""
        return self.num_computed + self.num_tokens


def spans_of(fields: Mapping[str, Integers]) -> tuple[Span, ...]:
    """Return the chunks of a step that fills up no recording; see step_layout.pack."""
    names = ("first_rows", "num_tokens", "num_computed", "chunk_first_blocks")
    if names[0] not in fields:
        return ()
    return tuple(Span(*values) for values in zip(*(fields[name].tolist() for name in names), strict=True))


def are_long(spans: Sequence[Span]) -> bool:
    """Tell whether chunks are so long, on average, that an operator for each is worth its launches."""
    return bool(spans) and sum(span.num_tokens for span in spans) >= FEWEST_TOKENS * len(spans)
