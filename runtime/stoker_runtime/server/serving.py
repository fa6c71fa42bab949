"""What the routes share: the engine, the model's text side, the limits, and requests on their way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from stoker_runtime.config import ServerConfig
from stoker_runtime.errors import EngineDead, RequestError
from stoker_runtime.messages import EngineReady
from stoker_runtime.server.answer import Answer
from stoker_runtime.server.client import EngineClient
from stoker_runtime.server.generation import Choice, Generation, Usage, add_requests
from stoker_runtime.server.metrics import Metrics, RequestTimer
from stoker_runtime.server.problems import engine_dead, queue_full, shutting_down, unavailable
from stoker_runtime.server.prompt import TextRoom
from stoker_runtime.server.stop_strings import StopStrings

logger = logging.getLogger(__name__)

# What a request's limits depend on: "tokens" are /tokenize and /detokenize.
Purpose = Literal["inference", "tokens", "operations"]

# They stand for the model that there is. huggingface_hub writes "dummy" for a user who names only a server.
UNNAMED = frozenset({"", "dummy"})


class Serving:
    """One model being served.

    Args:
        config: names and limits.
        client: the connection to the engine.
        max_running: requests the engine runs side by side at most.
    """

    def __init__(self, config: ServerConfig, client: EngineClient, max_running: int) -> None:
        self.config = config
        self.client = client
        self.max_running = max_running
        self.metrics = Metrics(config.served_model_names[0], lambda: client.stats, lambda: client.ready)
        client.on_step = self.metrics.stepped
        self.text: TextRoom | None = None  # set once the tokenizer is loaded
        self.is_draining = False
        self.draining_since_s = 0.0  # time.monotonic() when it began
        self.on_drain: Callable[[], None] = lambda: None  # called once, when a drain begins
        self.is_closed = False  # the drain is over: nothing more is started
        self.in_flight = 0  # HTTP inference requests not yet fully answered
        self.is_idle = asyncio.Event()
        self.is_idle.set()
        self.started_at = int(time.time())
        self._preparing: set[Record] = set()  # inference requests that the engine has not got yet
        self._num_tokenizing = 0  # requests of the token routes
        self._serials = count()

    @property
    def not_ready_reason(self) -> str | None:
        """Why new requests should go elsewhere; None when they should come."""
        if self.client.dead is not None:
            return "EngineDead"
        if self.is_draining:
            return "Draining"
        if self.client.ready is None or self.text is None:
            return "LoadingModel"
        return None if self.client.is_healthy else "EngineSilent"

    def drain(self) -> None:
        """Send clients elsewhere from now on, for good; what runs and what still comes is answered.

        To say it again changes nothing. A server that drains never comes back: its end is the way out.
        """
        if self.is_draining:
            return
        self.is_draining = True
        self.draining_since_s = time.monotonic()
        logger.info("draining", extra={"in_flight": self.in_flight})
        self.on_drain()

    @property
    def load(self) -> dict[str, int | bool]:
        """What is not yet fully answered; server_load is vLLM's name for it.

        `in_flight` counts HTTP inference requests, `waiting` the engine's requests that wait for a place.
        """
        return {
            "in_flight": self.in_flight,
            "server_load": self.in_flight,
            "waiting": self.client.stats.num_waiting,
            "draining": self.is_draining,
        }

    def loaded(self) -> tuple[TextRoom, EngineReady]:
        """Return the text side and what the engine said of itself.

        Raises:
            RequestError: 503; the model is still loading, or the engine is gone.
        """
        if self.client.dead is not None:
            raise engine_dead(self.client.dead)
        if self.text is None or self.client.ready is None:
            raise unavailable("the model is still loading", "loading", retry_after_s=5)
        return self.text, self.client.ready

    @property
    def max_model_len(self) -> int:
        """Prompt and output tokens that one request may have: the model's length, or all of the KV cache.

        Only known once the engine is ready.
        """
        ready = self.client.ready
        assert ready is not None
        return min(ready.max_model_len, ready.num_blocks * ready.block_size)

    def check_model(self, name: str | None) -> None:
        """Refuse a request for a model that is not served here, unless it names none.

        Raises:
            RequestError: 404, model_not_found.
        """
        if name is not None and name not in UNNAMED:
            self.check_name(name)

    def check_name(self, name: str) -> None:
        """Refuse a name that is none of the model's.

        Raises:
            RequestError: 404, model_not_found.
        """
        if name not in self.config.served_model_names:
            raise RequestError(
                f"`model` {name!r} is not served here; {', '.join(self.config.served_model_names)} is",
                status=404,
                param="model",
                code="model_not_found",
            )

    def refusal(self, purpose: Purpose) -> RequestError | None:
        """Return why a request is turned away before its body is read; None lets it in."""
        limit = self.config.max_queue
        if purpose == "inference" and self._num_waiting(len(self._preparing) + 1) > limit:
            return queue_full(f"{limit} requests are waiting already; try again a little later")
        if purpose == "tokens" and self._num_tokenizing >= limit:
            return queue_full(f"{limit} texts are being tokenized already; try again a little later")
        return None

    def entered(self, purpose: Purpose, record: Record) -> None:
        """Count a request in."""
        if purpose == "tokens":
            self._num_tokenizing += 1
        if purpose == "inference":
            self.in_flight += 1
            self.is_idle.clear()
            self._preparing.add(record)

    def left(self, purpose: Purpose, record: Record) -> None:
        """Count a request out, once it is fully answered or its client is gone."""
        if purpose == "tokens":
            self._num_tokenizing -= 1
        if purpose == "inference":
            self.in_flight -= 1
            self._preparing.discard(record)
            if self.in_flight == 0:
                self.is_idle.set()

    def admit(self, num_requests: int) -> None:
        """Refuse what would have to wait behind a full queue.

        Raises:
            RequestError: 429, with a Retry-After; 400 for a request that alone is more than the queue takes.
        """
        limit = self.config.max_queue
        if num_requests > self.max_running + limit:
            raise RequestError(
                f"prompts times `n` is {num_requests}; at most {self.max_running + limit} may run and wait",
                param="n",
                code="invalid_value",
            )
        if self._num_waiting(num_requests) > limit:
            self.metrics.rejected()
            raise queue_full(f"{limit} requests are waiting already; try again a little later")

    def _num_waiting(self, num_new: int) -> int:
        """Return how many engine requests would wait if so many more came."""
        stats = self.client.stats
        # While nobody waits, the engine may take as many as it can run; once it lets some wait, what its last
        # step computed is all it can. What has ended in that step leaves its place to those that wait.
        running = max(stats.num_running, stats.num_in_step) if stats.num_waiting else self.max_running
        return self.client.num_live + num_new - running

    def start(self, generation: Generation, record: Record, arrival_s: float) -> Answer:
        """Send a generation to the engine.

        Args:
            generation: what to generate.
            record: of the HTTP request; its id names the engine's requests.
            arrival_s: time.monotonic() when the HTTP request came.

        Raises:
            RequestError: 429 or 400, see admit; 503 when there is no engine.
        """
        text, _ = self.loaded()
        if self.is_closed:
            raise shutting_down()
        self.admit(generation.num_choices)
        self._preparing.discard(record)
        # Clients may give two requests one id; the engine must not see it twice.
        name = f"{record.request_id}.{next(self._serials)}"
        requests = add_requests(generation, name, self.max_model_len, arrival_s)
        try:
            ticket = self.client.submit(requests)
        except EngineDead as error:
            raise engine_dead(error) from error
        stops = StopStrings(generation.stop)
        choices = [Choice(index, generation, text.token_bytes, stops) for index in range(len(requests))]
        timers = [
            RequestTimer(self.metrics, arrival_s, len(request.prompt_token_ids), request.sampling.max_tokens)
            for request in requests
        ]
        return Answer(generation, text.token_bytes, ticket, choices, timers, self.metrics)


@dataclass(eq=False)
class Record:
    """What the log line at a request's end tells."""

    request_id: str
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    is_stream: bool = False
    usage: Usage | None = None
    finish_reasons: list[str] = field(default_factory=list)
    ttft_s: float | None = None
    error: str | None = None
    ignored: list[str] = field(default_factory=list)  # what of the body was not looked at, by its path
