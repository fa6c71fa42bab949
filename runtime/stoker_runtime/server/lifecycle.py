"""The server as a process: engine first, HTTP at once, the tokenizer meanwhile; drain at SIGTERM.

    start -> /ready 503 LoadingModel -> /ready 200 -> SIGTERM -> /ready 503, still serving -> listener closed
    -> in flight 0, or deadline -> exit 0

POST /drain begins the same earlier: /ready 503, still serving, until SIGTERM.

Whatever ends it otherwise is raised as the StokerError that says why.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import uvloop

from stoker_runtime import termination
from stoker_runtime.config import EngineConfig, ServerConfig
from stoker_runtime.errors import ConfigError, ModelError, StokerError
from stoker_runtime.server.client import EngineClient
from stoker_runtime.server.engine_process import ENGINE_COMMAND, EngineProcess

if TYPE_CHECKING:
    from stoker_runtime.server.listener import HttpServer
    from stoker_runtime.server.serving import Serving

logger = logging.getLogger(__name__)

_BACKLOG = 2048
# What it takes at most to close connections that are idle, see DRAINING_IDLE_S.
_GOODBYES_S = 2.5
# For streams to send the event that ends them.
_LAST_WORDS_S = 2.0


def run_server(
    server_config: ServerConfig, engine_config: EngineConfig, engine_command: Sequence[str] = ENGINE_COMMAND
) -> int:
    """Serve one model until SIGTERM or SIGINT.

    Args:
        server_config: names, address and limits.
        engine_config: what the engine runs; its model is a path on this machine.
        engine_command: the engine's program.

    Returns:
        0 once drained.

    Raises:
        ConfigError: the address cannot be listened on, or the engine refused a setting.
        ModelError: the model cannot be loaded.
        EngineDead: the engine ended or crashed.
    """
    with _listen(server_config) as listener:
        return uvloop.run(_Process(server_config, engine_config, engine_command).serve(listener))


class _Process:
    """The parts of one server process and their order of coming and going."""

    def __init__(
        self, server_config: ServerConfig, engine_config: EngineConfig, engine_command: Sequence[str]
    ) -> None:
        self._config = server_config
        self._engine_config = engine_config
        self._engine_command = engine_command
        self._is_stopping = asyncio.Event()  # first signal
        self._is_hurried = asyncio.Event()  # second signal: no more waiting

    async def serve(self, listener: socket.socket) -> int:
        """Run to the end; see run_server."""
        client = EngineClient(silence_limit_s=self._config.step_timeout_s)
        engine = EngineProcess(client, self._engine_config, self._engine_command)
        engine.start()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        await engine.has_started.wait()
        # Imported while the engine imports torch: a web framework takes most of a second.
        from stoker_runtime.server.listener import HttpServer, uvicorn_config
        from stoker_runtime.server.serving import Serving

        serving = Serving(self._config, client, self._max_running)
        http = HttpServer(uvicorn_config(serving))
        serving.on_drain = http.close_idle
        serving_http = asyncio.create_task(http.serve(sockets=[listener]))
        loading = asyncio.create_task(self._load(serving))
        try:
            await self._until_stopped(client, {loading, serving_http})
            if client.dead is None:
                await self._drain(serving, http)
        finally:
            loading.cancel()
            http.should_exit = True
            await asyncio.gather(loading, return_exceptions=True)
            await serving_http
            await engine.stop()
        return 0

    @property
    def _max_running(self) -> int:
        """Requests the engine runs side by side; the automatic number depends on the device it finds."""
        device = self._engine_config.device
        return self._engine_config.for_device("cpu" if device == "auto" else device).max_num_seqs

    def _on_signal(self) -> None:
        if self._is_stopping.is_set():
            self._is_hurried.set()
        self._is_stopping.set()

    async def _load(self, serving: Serving) -> None:
        """Load the tokenizer, wait for the engine, say that the model is there."""
        from stoker_runtime.server.prompt import TextRoom
        from stoker_runtime.tokenizer_files import load_assets

        path, config = self._engine_config.model, self._config
        serving.text = await asyncio.to_thread(
            lambda: TextRoom(
                load_assets(path),
                chat_template=config.chat_template,
                sanitize_control_tokens=config.sanitize_control_tokens,
            )
        )
        # What is loaded stays for good; without this each full collection would walk it again.
        gc.collect()
        gc.freeze()
        await serving.client.is_ready.wait()
        ready = serving.client.ready
        assert ready is not None
        serving.max_running = self._engine_config.for_device(ready.device).max_num_seqs
        logger.info(
            "ready",
            extra={
                "model": self._config.served_model_names[0],
                "device": ready.device,
                "dtype": ready.dtype,
                "max_model_len": serving.max_model_len,
                "weights_bytes": ready.weights_bytes,
                "kv_blocks": ready.num_blocks,
                "load_s": round(ready.load_s, 2),
            },
        )

    async def _until_stopped(self, client: EngineClient, background: set[asyncio.Task[None]]) -> None:
        """Return when a signal came.

        Args:
            client: knows when the engine is dead.
            background: tasks whose failure is ours.

        Raises:
            StokerError: the engine is dead or the model cannot be loaded.
        """
        stopping = asyncio.create_task(self._is_stopping.wait())
        dying = asyncio.create_task(client.is_dead.wait())
        waiting: set[asyncio.Task[Any]] = {stopping, dying, *background}
        try:
            while not stopping.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done & background:
                    task.result()
                if dying.done():
                    raise cause_of_death(client)
        finally:
            stopping.cancel()
            dying.cancel()

    async def _drain(self, serving: Serving, http: HttpServer) -> None:
        """Stop being ready, go on serving while Services forget us, then finish what runs.

        Raises:
            StokerError: the engine died meanwhile.
        """
        from stoker_runtime.server.problems import shutting_down

        config, client = self._config, serving.client
        serving.drain()
        # Who was told by POST /drain has waited already.
        delay_s = serving.draining_since_s + config.shutdown_delay_s - time.monotonic()
        await _first_of(max(0.0, delay_s), client.is_dead, self._is_hurried)
        http.close_listeners()
        await self._until_idle(serving, http)
        serving.is_closed = True
        if client.dead is not None:
            raise cause_of_death(client)
        if not serving.is_idle.is_set():
            logger.warning("giving up requests in flight", extra={"in_flight": serving.in_flight})
            client.fail_all(shutting_down())
            await _first_of(_LAST_WORDS_S, serving.is_idle)
        logger.info("drained")

    async def _until_idle(self, serving: Serving, http: HttpServer) -> None:
        """Wait for what runs, and until the clients of kept connections have learnt that these end."""
        ends_s = time.monotonic() + self._config.drain_timeout_s
        while True:
            left_s = max(0.0, ends_s - time.monotonic())
            await _first_of(left_s, serving.is_idle, self._is_hurried)
            if self._is_hurried.is_set() or not serving.is_idle.is_set():
                return
            left_s = min(_GOODBYES_S, max(0.0, ends_s - time.monotonic()))
            await _first_of(left_s, http.server_state.are_gone, self._is_hurried)
            if serving.is_idle.is_set():
                return


async def _first_of(limit_s: float, *events: asyncio.Event) -> None:
    """Wait for any of the events, at most this long."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def cause_of_death(client: EngineClient) -> StokerError:
    """Return the engine's end as the error that sets the exit status and the termination message."""
    assert client.dead is not None
    failed = client.failed
    if failed is None or failed.reason == termination.ENGINE_CRASHED:
        return client.dead
    if failed.reason == termination.INVALID_CONFIG:
        return ConfigError(failed.message)
    return ModelError(failed.message, reason=failed.reason)


def _listen(config: ServerConfig) -> socket.socket:
    takes_both = config.host in ("", "::") and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if takes_both or ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (config.host, config.port), family=family, backlog=_BACKLOG, dualstack_ipv6=takes_both
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen on --host {config.host} --port {config.port}: {error.strerror}"
        ) from error
    logger.info("listening", extra={"host": config.host, "port": listener.getsockname()[1]})
    return listener
