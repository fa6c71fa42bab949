"""One HTTP request's answer on its way from the engine: outputs in, deltas of text out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from stoker_runtime.errors import EngineDead, RequestError
from stoker_runtime.messages import RequestOutput
from stoker_runtime.server.client import Ticket
from stoker_runtime.server.detokenize import TokenBytes
from stoker_runtime.server.generation import Choice, Delta, Generation, Usage, usage
from stoker_runtime.server.metrics import Metrics, RequestTimer
from stoker_runtime.server.problems import engine_dead
from stoker_runtime.server.prompt_output import PromptOutput


class Answer:
    """One HTTP request's generation on its way. Close it whatever happens: that frees the engine's KV."""

    def __init__(
        self,
        generation: Generation,
        token_bytes: TokenBytes,
        ticket: Ticket,
        choices: Sequence[Choice],
        timers: Sequence[RequestTimer],
        metrics: Metrics,
    ) -> None:
        self.generation = generation
        self.token_bytes = token_bytes
        self._prompts = PromptOutput(generation, token_bytes)
        self._ticket = ticket
        self._timers = timers
        self._metrics = metrics
        self.choices = list(choices)

    async def deltas(self) -> AsyncIterator[Sequence[Delta]]:
        """Yield what each step added, until every choice has ended; what is long in pieces.

        Raises:
            RequestError: the engine failed this request, died, or is shutting down.
        """
        try:
            for piece in self._prompts.opening():
                yield piece
                await asyncio.sleep(0)
            async for arrived in self._ticket:
                deltas = [delta for item in arrived if (delta := self._take(*item)) is not None]
                for piece in self._prompts.before(deltas):
                    yield piece
                    if piece is not deltas:
                        await asyncio.sleep(0)
            size = self.generation.num_candidates
            for first in range(0, len(self.choices), size):
                sizes = [choice.num_output_tokens for choice in self.choices[first : first + size]]
                self._metrics.prompt_answered(sizes)
        except EngineDead as error:
            self._end("error")
            raise engine_dead(error) from error
        except RequestError:
            self._end("error")
            raise
        finally:
            self.close()

    def _take(self, index: int, output: RequestOutput, at_s: float) -> Delta | None:
        """Return what an output adds to its choice; None for tokens behind a stop string.

        The engine computes those before it hears of the stop string.
        """
        choice, timer = self.choices[index], self._timers[index]
        if choice.finish_reason is not None:
            return None
        before = choice.num_output_tokens
        self._prompts.take(index, output)
        delta = choice.take(output)
        num_tokens = choice.num_output_tokens - before
        timer.tokens(
            at_s, len(output.token_ids) if self.generation.drops_output else num_tokens, output.queue_s
        )
        timer.num_preemptions = output.num_preemptions
        if delta.finish_reason is not None:
            timer.end(delta.finish_reason)
            self._ticket.abort(index)
        return delta

    def close(self) -> None:
        """Give up what has not ended. No effect on a finished answer."""
        self._ticket.close()
        self._end("abort")

    def _end(self, reason: str) -> None:
        for timer in self._timers:
            timer.end(reason)

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return usage(self.generation, self.choices)

    @property
    def first_token_s(self) -> float | None:
        """When the first token came, on the clock of time.monotonic(); None while there is none."""
        return min((timer.first_s for timer in self._timers if timer.first_s is not None), default=None)
