"""What of a prompt goes out with its answers: its text, and its tokens' log-probabilities. Pure.

A prompt may be as long as the model allows, so it goes out in pieces between which others get their turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from stoker_runtime.messages import RequestOutput, TokenLogprob
from stoker_runtime.server.detokenize import TokenBytes
from stoker_runtime.server.generation import Delta, Generation, ShownToken

# Log-probabilities, whoever's; writing so many takes some milliseconds.
PIECE_VALUES = 4096
PIECE_CHARS = 2**16


@dataclass(slots=True)
class _Prompt:
    """How far one prompt is."""

    logprobs: list[TokenLogprob] = field(default_factory=list)
    held: list[Delta] = field(default_factory=list)  # of its choices, until it has gone out
    is_known: bool = False  # all that is told of it has come
    is_out: bool = False


class PromptOutput:
    """Puts what is told of each prompt in front of its choices' deltas.

    The engine scores a prompt with its first choice, see generation.add_requests; what comes of the others
    before that is held back.

    Args:
        generation: whose prompts they are.
        token_bytes: the model's vocabulary.
    """

    def __init__(self, generation: Generation, token_bytes: TokenBytes) -> None:
        self._generation = generation
        self._token_bytes = token_bytes
        self._num_logprobs = generation.sampling.logprobs
        self._is_scored = generation.shows_prompt_logprobs or generation.echoes_tokens
        self._piece_tokens = max(1, PIECE_VALUES // (2 + (generation.sampling.prompt_logprobs or 0)))
        self._prompts = [_Prompt() for _ in generation.prompts]
        self._num_waiting = len(self._prompts) if self._is_scored or generation.echo is not None else 0

    def opening(self) -> Iterator[Sequence[Delta]]:
        """Yield, in pieces, what can be told before the engine has computed anything."""
        if not self._is_scored and self._num_waiting:
            for number in range(len(self._prompts)):
                yield from self._told(number)

    def take(self, index: int, output: RequestOutput) -> None:
        """Take what an output of a choice tells of its prompt."""
        prompt = self._prompts[index // self._generation.num_candidates]
        if not prompt.is_out and index % self._generation.num_candidates == 0:
            prompt.logprobs += output.prompt_logprobs
            prompt.is_known = bool(output.token_ids) or output.finish_reason is not None

    def before(self, deltas: Sequence[Delta]) -> Iterator[Sequence[Delta]]:
        """Yield a step's deltas in pieces, behind what is told of their prompts; some may have to wait."""
        if self._num_waiting == 0:
            yield deltas
            return
        passed: list[Delta] = []
        for delta in deltas:
            prompt = self._prompts[delta.index // self._generation.num_candidates]
            (passed if prompt.is_out else prompt.held).append(delta)
        if passed:
            yield passed
        for number, prompt in enumerate(self._prompts):
            if prompt.is_known and not prompt.is_out:
                yield from self._told(number)

    def _told(self, number: int) -> Iterator[Sequence[Delta]]:
        """Yield what is told of a prompt, and what waited for it."""
        prompt = self._prompts[number]
        indexes = range(
            number * self._generation.num_candidates, (number + 1) * self._generation.num_candidates
        )
        if self._generation.shows_prompt_logprobs:
            for start in range(0, len(prompt.logprobs), self._piece_tokens):
                piece = prompt.logprobs[start : start + self._piece_tokens]
                yield [Delta(indexes[0], "", prompt_logprobs=piece)]
        if self._generation.echo is not None:
            for index in indexes:
                for text, tokens in self._pieces(number, self._generation.echo[number]):
                    yield [Delta(index, text, tokens)]
        held = prompt.held
        self._prompts[number] = _Prompt(is_out=True)
        self._num_waiting -= 1
        if held:
            yield held

    def _pieces(self, number: int, text: str) -> Iterator[tuple[str, Sequence[ShownToken]]]:
        """Yield a prompt's text in pieces, with its tokens where they are told."""
        if not self._generation.echoes_tokens:
            for first in range(0, len(text), PIECE_CHARS):
                yield text[first : first + PIECE_CHARS], ()
            return
        token_ids = self._generation.prompts[number]
        offsets = token_offsets(text, token_ids, self._token_bytes)
        logprobs = [None, *self._prompts[number].logprobs]
        start = 0
        tokens: list[ShownToken] = []
        for token_id, offset, logprob in zip(token_ids, offsets, logprobs, strict=True):
            if len(tokens) == self._piece_tokens:
                yield text[start:offset], tokens
                start, tokens = offset, []
            tokens.append(ShownToken(token_id, offset, self._cut(logprob)))
        yield text[start:], tokens

    def _cut(self, logprob: TokenLogprob | None) -> TokenLogprob | None:
        """Leave as many of the likeliest tokens as the answer's own tokens have."""
        if logprob is None or self._num_logprobs is None or len(logprob.top) <= self._num_logprobs:
            return logprob
        return msgspec.structs.replace(logprob, top=logprob.top[: self._num_logprobs])


def token_offsets(text: str, token_ids: Iterable[int], token_bytes: TokenBytes) -> Iterator[int]:
    """Yield where in a prompt's text each of its tokens begins, in characters.

    Tokens that the text does not have, such as a beginning-of-sequence token, take no room in it, nor does a
    leading space that a tokenizer adds. Where a tokenizer has rewritten the text, offsets are near.
    """
    joiner = token_bytes.joiner()
    at = 0

    def end_of(piece: str, is_special: bool) -> int:
        if text.startswith(piece, at):
            return at + len(piece)
        if piece[0] == " " and text.startswith(piece[1:], at):
            return at + len(piece) - 1
        return at if is_special else min(at + len(piece), len(text))

    for token_id in token_ids:
        earlier, own = joiner.push(token_id)
        if earlier:
            at = end_of(earlier, False)
        yield at
        if own:
            at = end_of(own, token_id in token_bytes.special_ids)
