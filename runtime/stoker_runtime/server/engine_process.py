"""The engine's process: started first, joined over a private Unix socket, and buried when it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stoker_runtime import machine, termination
from stoker_runtime.config import EngineConfig
from stoker_runtime.errors import ConfigError, EngineDead
from stoker_runtime.messages import EngineFailed
from stoker_runtime.server.client import EngineClient

logger = logging.getLogger(__name__)

# -P: a file in the working directory that is named like a module must not take its place.
ENGINE_COMMAND = (sys.executable, "-P", "-m", "stoker_runtime.engine")
# From the end of the connection to the end of the process, and from Shutdown to the end of both.
_BURIAL_S = 5.0
_GOODBYE_S = 10.0
_READ_BUFFER_BYTES = 1024**2


class EngineProcess:
    """One engine process and its connection.

    Args:
        client: speaks with it.
        config: what it serves.
        command: the program; gets --socket and --config.
    """

    def __init__(
        self, client: EngineClient, config: EngineConfig, command: Sequence[str] = ENGINE_COMMAND
    ) -> None:
        self._client = client
        self._config = config
        self._command = command
        self._running: asyncio.Task[None] | None = None
        self.has_started = asyncio.Event()  # also set when it could not be

    def start(self) -> None:
        """Start it in the background; when it is gone, whatever the reason, the client knows."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ask it to exit, and kill it when it does not."""
        assert self._running is not None
        if self._client.ready is None:
            self._running.cancel()  # it reads no commands while it loads
        self._client.shutdown()
        _, late = await asyncio.wait({self._running}, timeout=_GOODBYE_S)
        if late:
            logger.warning("the engine did not exit in time; killing it")
            self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        try:
            self._client.die(EngineDead(await self._serve()))
        except ConfigError as error:
            self._client.failed = EngineFailed(reason=termination.INVALID_CONFIG, message=str(error))
            self._client.die(EngineDead(str(error)))
        except OSError as error:
            self._client.die(EngineDead(f"it could not be started: {error}"))
        except Exception as error:
            # Whatever it is, nobody looks after the engine any more.
            logger.exception("looking after the engine failed")
            self._client.die(EngineDead(f"looking after it failed: {error!r}"))
        finally:
            self.has_started.set()

    async def _serve(self) -> str:
        """Run the process to its end; return why it ended."""
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        connected = asyncio.get_running_loop().create_future()

        def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if connected.done():
                writer.close()  # one engine, one connection
            else:
                connected.set_result((reader, writer))

        num_oom_kills = machine.num_oom_kills()
        # The folder is for this user only, and with it the socket.
        with _private_folder() as folder:
            path = Path(folder) / "engine.sock"
            async with await asyncio.start_unix_server(on_connect, path, limit=_READ_BUFFER_BYTES):
                process = await asyncio.create_subprocess_exec(
                    *self._command, "--socket", str(path), "--config", self._config.to_json()
                )
                self.has_started.set()
                logger.info("started the engine", extra={"engine_pid": process.pid})
                exited = asyncio.create_task(process.wait())
                try:
                    first: set[asyncio.Future[Any]] = {exited, connected}
                    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
                    reason = "it ended before it connected"
                    if connected.done():
                        reason = await self._client.run(*connected.result())
                    await asyncio.wait({exited}, timeout=_BURIAL_S)
                finally:
                    if process.returncode is None:
                        process.kill()
                    # Even SIGKILL waits for a device driver that does not return.
                    await asyncio.wait({exited}, timeout=_BURIAL_S)
                    exited.cancel()
        if process.returncode == -signal.SIGKILL and machine.num_oom_kills() > num_oom_kills:
            self._note_out_of_memory()
        return self._explain(reason, process.returncode)

    def _note_out_of_memory(self) -> None:
        """Say in the engine's place what it could not say any more."""
        if self._client.failed is None:
            limit = machine.memory_limit_bytes()
            message = (
                f"the kernel ended the engine for lack of memory (the limit is {limit} bytes); raise "
                "the memory limit, or lower --kv-cache-memory or --max-num-batched-tokens"
            )
            self._client.failed = EngineFailed(reason=termination.OUT_OF_MEMORY, message=message)

    def _explain(self, reason: str, status: int | None) -> str:
        if self._client.failed is not None:
            return self._client.failed.message
        if status is None:
            return f"{reason}; its process does not end"
        if status < 0:
            name = _signal_name(-status)
            hint = "; it may have run out of memory" if status == -signal.SIGKILL else ""
            return f"{reason}; its process was ended by {name}{hint}"
        return f"{reason}; its process ended with status {status}"


def _private_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder that lasts as long as its block.

    Raises:
        ConfigError: there is nowhere to make one.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="stoker-")
    except OSError as error:
        raise ConfigError(
            f"no folder can hold the engine's socket ({error.strerror}): make /tmp writable, or set TMPDIR"
        ) from error


def _signal_name(number: int) -> str:
    """Return a signal's name; real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
