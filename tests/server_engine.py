"""An engine without a model, for the server's tests: speaks the frames of the real one over any stream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import httpx2
import msgspec
from fastapi import FastAPI
from server_builders import make_assets

from stoker_runtime.config import ServerConfig
from stoker_runtime.errors import EngineDead
from stoker_runtime.messages import (
    HEADER_BYTES,
    AbortRequest,
    AddRequest,
    EngineReady,
    EngineStats,
    Event,
    FinishReason,
    RequestOutput,
    Shutdown,
    StepOutputs,
    TokenLogprob,
    decode_command,
    encode_frame,
    frame_length,
)
from stoker_runtime.server.app import create_app
from stoker_runtime.server.client import EngineClient
from stoker_runtime.server.listener import HttpServer, uvicorn_config
from stoker_runtime.server.prompt import TextRoom
from stoker_runtime.server.serving import Serving
from stoker_runtime.tokenizer_files import Assets

DEADLINE_S = 20.0
HEARTBEAT_S = 1.0


def make_ready(**changes: object) -> EngineReady:
    """What a small CPU engine says of itself."""
    defaults: dict[str, object] = {
        "max_model_len": 256,
        "num_blocks": 64,
        "block_size": 16,
        "vocab_size": 512,
        "device": "cpu",
        "dtype": "float32",
        "eos_token_ids": (257,),
        "weights_bytes": 0,
        "kv_cache_bytes": 0,
        "load_s": 0.0,
    }
    return EngineReady(**{**defaults, **changes})  # type: ignore[arg-type]


@dataclass
class _Live:
    request: AddRequest
    tokens: list[int]  # still to give
    num_given: int = 0
    num_scored: int = 0  # tokens of the prompt whose log-probabilities were sent


@dataclass
class FakeEngine:
    """Answers each request with a script, one token per step; steps only while `may_step` is set.

    Args:
        reply: the tokens of a request's answer; default: its prompt again, then end-of-sequence.
        ready: what it says of itself.
        max_running: the rest waits.
    """

    reply: Callable[[AddRequest], list[int]] | None = None
    ready: EngineReady = field(default_factory=make_ready)
    max_running: int = 64
    logprob_of: Callable[[int], float] = lambda token: -0.5  # of an output token
    scored_per_step: int = 2  # tokens of a prompt whose log-probabilities are asked for
    errors: dict[int, str] = field(default_factory=dict)  # by number of the request: an error as its answer
    added: list[AddRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_step = asyncio.Event()
        self.may_step.set()
        self.changed = asyncio.Event()
        self._live: dict[str, _Live] = {}
        self._writer: asyncio.StreamWriter | None = None

    @property
    def num_live(self) -> int:
        """Requests that have not ended; a real engine holds KV for them."""
        return len(self._live)

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until its other end says Shutdown or closes."""
        self._writer = writer
        self.send(self.ready)
        stepping = asyncio.create_task(self._step_forever())
        try:
            while True:
                size = frame_length(await reader.readexactly(HEADER_BYTES))
                command = decode_command(await reader.readexactly(size))
                match command:
                    case AddRequest():
                        self._add(command)
                    case AbortRequest():
                        self.aborted.append(command.request_id)
                        self._live.pop(command.request_id, None)
                        self.send_stats()
                    case Shutdown():
                        return
                self.changed.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            stepping.cancel()
            await asyncio.gather(stepping, return_exceptions=True)
            writer.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that commands change holds."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def send(self, event: Event) -> None:
        """Send one event."""
        assert self._writer is not None
        self._writer.write(encode_frame(event))

    def send_stats(self) -> None:
        """Send a heartbeat with the current stats."""
        self.send(StepOutputs(outputs=[], stats=self.stats()))

    def stats(self) -> EngineStats:
        """Return gauges as of now."""
        running = min(len(self._live), self.max_running)
        waiting = len(self._live) - running
        return EngineStats(num_running=running, num_waiting=waiting, kv_usage=running / self.max_running)

    def close(self) -> None:
        """End the connection as a crash would."""
        assert self._writer is not None
        self._writer.close()

    def _add(self, request: AddRequest) -> None:
        eos = list(self.ready.eos_token_ids[:1])
        tokens = (self.reply or (lambda r: [*r.prompt_token_ids, *eos]))(request)
        error = self.errors.get(len(self.added))
        self.added.append(request)
        if error is not None:
            output = RequestOutput(
                request_id=request.request_id, finish_reason=FinishReason.ERROR, error=error
            )
            self.send(StepOutputs(outputs=[output], stats=self.stats()))
            return
        self._live[request.request_id] = _Live(request, tokens)
        if not self.may_step.is_set():
            self.send_stats()

    async def _step_forever(self) -> None:
        while True:
            await self.may_step.wait()
            if not self._live:
                self.changed.clear()
                try:
                    await asyncio.wait_for(self.changed.wait(), HEARTBEAT_S)
                except TimeoutError:
                    self.send_stats()
                continue
            running = list(self._live.values())[: self.max_running]
            outputs = [self._score(live) or self._next(live) for live in running]
            self.send(StepOutputs(outputs=outputs, stats=self.stats()))
            self.changed.set()
            await asyncio.sleep(0)

    def _score(self, live: _Live) -> RequestOutput | None:
        """Compute a part of a prompt that is scored; None when what is left goes with the first token."""
        request = live.request
        num_left = len(request.prompt_token_ids) - 1 - live.num_scored
        if request.sampling.prompt_logprobs is None or num_left <= self.scored_per_step:
            return None
        logprobs = self._prompt_logprobs(live, self.scored_per_step)
        return RequestOutput(request_id=request.request_id, prompt_logprobs=logprobs)

    def _prompt_logprobs(self, live: _Live, num_tokens: int) -> list[TokenLogprob]:
        first = live.num_scored + 1
        live.num_scored += num_tokens
        tokens = live.request.prompt_token_ids[first : first + num_tokens]
        num_top = live.request.sampling.prompt_logprobs
        assert num_top is not None
        return [prompt_logprob(token, num_top) for token in tokens]

    def _next(self, live: _Live) -> RequestOutput:
        request, sampling = live.request, live.request.sampling
        token = live.tokens.pop(0) if live.tokens else 0
        live.num_given += 1
        ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self.ready.eos_token_ids)}
        reason = stop_token = None
        if token in ends:
            reason, stop_token = FinishReason.STOP, token
        elif live.num_given >= sampling.max_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            del self._live[request.request_id]
        logprobs = []
        if sampling.logprobs is not None:
            logprob = self.logprob_of(token)
            top = [((token + rank) % 256, logprob - rank) for rank in range(sampling.logprobs)]
            logprobs = [TokenLogprob(token_id=token, logprob=logprob, top=top)]
        scored = []
        if sampling.prompt_logprobs is not None and live.num_given == 1:
            scored = self._prompt_logprobs(live, len(request.prompt_token_ids) - 1 - live.num_scored)
        return RequestOutput(
            request_id=request.request_id,
            token_ids=[token],
            logprobs=logprobs,
            prompt_logprobs=scored,
            finish_reason=reason,
            stop_token_id=stop_token,
            num_cached_tokens=len(request.prompt_token_ids) // 2 if live.num_given == 1 else 0,
            queue_s=0.25 if live.num_given == 1 else None,
        )


def prompt_logprob(token: int, num_top: int) -> TokenLogprob:
    """What the engine says of a token of a prompt: even ones are the likeliest, odd ones come second."""
    likeliest, is_second = token - token % 2, token % 2
    top = [((likeliest + number) % 256, -0.25 - number) for number in range(num_top)]
    return TokenLogprob(token_id=token, logprob=-0.25 - is_second, top=top, rank=1 + is_second)


class HasServing(Protocol):
    """Whatever a server can listen for."""

    serving: Serving


@dataclass
class Stack:
    """A server over a fake engine, in one process."""

    app: FastAPI
    serving: Serving
    engine: FakeEngine
    http: httpx2.AsyncClient
    assets: Assets

    def ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        return list(self.assets.tokenizer.encode(text).ids)

    def say(self, *answers: str) -> None:
        """Let the engine answer with these texts in turn, each to its end-of-sequence token."""
        eos = self.engine.ready.eos_token_ids[0]
        scripts = [[*self.ids(answer), eos] for answer in answers]
        self.engine.reply = lambda request: list(scripts[(len(self.engine.added)) % len(scripts)])


async def connected_client(engine: FakeEngine) -> tuple[EngineClient, list[asyncio.Task[None]]]:
    """Join a client and an engine by a socket pair; the tasks run until either end closes."""
    ours, theirs = socket.socketpair()
    client = EngineClient()

    async def serve_client() -> None:
        reason = await client.run(*await asyncio.open_connection(sock=ours))
        client.die(EngineDead(reason))

    async def serve_engine() -> None:
        await engine.run(*await asyncio.open_connection(sock=theirs))

    tasks = [asyncio.create_task(serve_client()), asyncio.create_task(serve_engine())]
    async with asyncio.timeout(DEADLINE_S):
        await client.is_ready.wait()
    return client, tasks


@cache
def shared_text_room() -> TextRoom:
    """The text side of make_assets(). The process of its chat template takes a fifth of a second to start."""
    return TextRoom(make_assets())


def end_templates(room: TextRoom) -> None:
    """End the processes of a room that is not shared; FastAPI remembers routes, and they it, for good."""
    for worker in (room._short, room._long):
        if worker.template is not None:
            worker.template.close()


@asynccontextmanager
async def running_stack(
    engine: FakeEngine | None = None,
    assets: Assets | None = None,
    config: ServerConfig | None = None,
) -> AsyncIterator[Stack]:
    """Run a server over a fake engine, with a client that calls it without a network."""
    engine = engine or FakeEngine()
    text = shared_text_room() if assets is None else TextRoom(assets)
    config = config or make_server_config()
    client, tasks = await connected_client(engine)
    serving = Serving(config, client, engine.max_running)
    serving.text = text
    app = create_app(serving)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=True)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://stoker") as http:
            yield Stack(app, serving, engine, http, text.assets)
    finally:
        if assets is not None:
            await asyncio.to_thread(end_templates, text)
        client.shutdown()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def listening(stack: HasServing, **settings: object) -> AsyncIterator[str]:
    """Serve a stack on a loopback port, as the process does; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn_config(stack.serving)
        for name, value in settings.items():
            setattr(config, name, value)
        server = HttpServer(config)
        stack.serving.on_drain = server.close_idle
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until something holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0)


def make_server_config(**changes: object) -> ServerConfig:
    """A configuration with one model called tiny."""
    defaults: dict[str, object] = {"served_model_names": ("tiny",), "host": "127.0.0.1", "port": 0}
    return ServerConfig(**{**defaults, **changes})  # type: ignore[arg-type]


def events_of(body: str) -> list[object]:
    """Parse server-sent events; the last one of a whole stream is the text [DONE]."""
    blocks = [block.removeprefix("data: ") for block in body.split("\n\n") if block]
    return [block if block == "[DONE]" else msgspec.json.decode(block) for block in blocks]
