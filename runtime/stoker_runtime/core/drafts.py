"""Guesses of the tokens that come next, taken from the request's own text. Pure.

Where the last few tokens stand already once, what followed them there is a draft. A step computes the draft
along with the last token, and the scheduler keeps as much of it as the model would have picked: one step,
many tokens. Answers that repeat their prompt (edits, quotes, code, extracted fields) gain most.

A draft is not a sample but one fixed guess. Each position is sampled as it would be without it, with the
position's own random number, and the draft holds as far as it equals that. So the text is the same, greedy or
drawn, and so is its distribution.

Sources: prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding); verifying drafts
in one step: Leviathan, Kalman, Matias 2023 (arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stoker_runtime.core.request import Request

_SIZES = (4, 3, 2)  # tokens that must agree, the longest agreement first
_FIRST_LENGTH = 4
_MAX_LENGTH = 10
_MAX_PAUSE = 64


class NgramIndex:
    """Where in a growing list of tokens the same few tokens stood last."""

    def __init__(self) -> None:
        self._num_indexed = 0
        self._following: dict[tuple[int, ...], int] = {}  # a few tokens -> the position right after them

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take in the tokens that were added since the last call."""
        for position in range(max(self._num_indexed, min(_SIZES)), len(token_ids)):
            for size in _SIZES:
                if size <= position:
                    self._following[tuple(token_ids[position - size : position])] = position
        self._num_indexed = len(token_ids)

    def propose(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Return `count` tokens that followed the same last tokens before; none if nothing agrees.

        Where the text ends before there are so many, it is taken to go on in the same circle.
        """
        for size in _SIZES:
            position = self._following.get(tuple(token_ids[-size:])) if size <= len(token_ids) else None
            if position is not None:
                period = len(token_ids) - position
                return [token_ids[position + index % period] for index in range(count)]
        return []


@dataclass(slots=True)
class _Guess:
    """What is known of one request.

    Args:
        index: of its tokens.
        length: of its next draft.
        pause: steps without a draft after the next one that is wrong from its first token on.
        num_paused: of those that are still to come.
    """

    index: NgramIndex = field(default_factory=NgramIndex)
    length: int = _FIRST_LENGTH
    pause: int = 1
    num_paused: int = 0


class Drafts:
    """Drafts for requests that decode.

    Args:
        max_rows: tokens of a step up to which drafts are added to it; 0: none are made. A device reads all
            weights for one row as for some more; beyond that a wrong guess costs as much as a right token.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._guesses: dict[str, _Guess] = {}
        self.num_drafts = 0  # made since start
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0  # of those, the model picked the same

    def allowance(self, num_decodes: int) -> int:
        """Return how many draft tokens a step may hold in which so many requests may decode."""
        return max(0, self._max_rows - num_decodes)

    def propose(self, request: Request, room: int) -> list[int]:
        """Return a draft for a request whose last token is about to be computed.

        Args:
            request: it decodes.
            room: most tokens that the draft may have.
        """
        room = min(room, request.sampling.max_tokens - len(request.output_token_ids) - 1)
        if room <= 0:
            return []
        guess = self._guesses.setdefault(request.request_id, _Guess())
        if guess.num_paused:
            guess.num_paused -= 1
            return []
        guess.index.extend(request.token_ids)
        draft = guess.index.propose(request.token_ids, min(room, guess.length))
        self.num_drafts += bool(draft)
        self.num_draft_tokens += len(draft)
        return draft

    def verified(self, request: Request, num_proposed: int, num_accepted: int) -> None:
        """Learn how a draft fared: the next is longer after a right guess and shorter after a wrong one."""
        self.num_accepted_tokens += num_accepted
        guess = self._guesses.get(request.request_id)
        if guess is None or not num_proposed:
            return
        if num_accepted == num_proposed:
            guess.length = min(_MAX_LENGTH, guess.length + 2)
        else:
            guess.length = max(1, (guess.length + num_accepted) // 2)
        if num_accepted:
            guess.pause = 1
        else:
            guess.num_paused = guess.pause
            guess.pause = min(_MAX_PAUSE, 2 * guess.pause)

    def forget(self, request: Request) -> None:
        """Drop what is known of a request that has ended."""
        self._guesses.pop(request.request_id, None)
