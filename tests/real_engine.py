"""A server over a real engine, in one process: the engine steps a small model in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from model_builders import make_engine
from server_engine import DEADLINE_S, make_server_config, shared_text_room

from stoker_runtime.engine.connection import Connection
from stoker_runtime.engine.engine import Engine
from stoker_runtime.engine.loop import run_loop
from stoker_runtime.errors import EngineDead
from stoker_runtime.messages import EngineReady
from stoker_runtime.server.client import EngineClient
from stoker_runtime.server.serving import Serving


@dataclass
class RealStack:
    """A server and the engine behind it."""

    serving: Serving
    engine: Engine


@asynccontextmanager
async def real_stack(model: Path, **sizes: int) -> AsyncIterator[RealStack]:
    """Serve a model directory, in float32; its vocabulary has room for make_byte_level_tokenizer's tokens.

    Args:
        model: what write_model wrote.
        sizes: of the engine, as make_engine takes them.
    """
    engine = make_engine(model, **sizes)
    ours, theirs = socket.socketpair()
    with theirs:
        thread = threading.Thread(target=_step, args=(engine, Connection(theirs)))
        thread.start()
        client = EngineClient()
        reader, writer = await asyncio.open_connection(sock=ours)
        running = asyncio.create_task(_until_closed(client, reader, writer))
        async with asyncio.timeout(DEADLINE_S):
            await client.is_ready.wait()
        serving = Serving(make_server_config(), client, max_running=sizes.get("max_num_seqs", 8))
        serving.text = shared_text_room()
        try:
            yield RealStack(serving, engine)
        finally:
            client.shutdown()
            async with asyncio.timeout(DEADLINE_S):
                await running
            await asyncio.to_thread(thread.join, DEADLINE_S)


def _step(engine: Engine, connection: Connection) -> None:
    ready: EngineReady = engine._runner.ready()
    connection.send(ready)
    run_loop(engine, connection, heartbeat_s=0.05)
    connection._sock.shutdown(socket.SHUT_RDWR)


async def _until_closed(
    client: EngineClient, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    client.die(EngineDead(await client.run(reader, writer)))
