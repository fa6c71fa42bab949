"""How HTTP is listened for: uvicorn with our routes and without its signal handling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import uvicorn

from stoker_runtime.server.app import create_app
from stoker_runtime.server.connection import Connection, Connections
from stoker_runtime.server.serving import Serving

# How long a drain leaves an idle connection alone. A client that takes one out of its pool just as it is
# closed loses its request and, for a POST, mostly does not send it again: so a connection in steady use is
# not closed under its client but told with its next answer, and only one at rest is closed.
DRAINING_IDLE_S = 2
# For streams to send the event that ends them, once the drain is over.
_LAST_WORDS_S = 2


class HttpServer(uvicorn.Server):
    """Uvicorn without its signal handling: the drain is ours.

    Args:
        config: see uvicorn_config.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state: Connections = Connections()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leave signals alone."""
        return nullcontext()

    def close_listeners(self) -> None:
        """Refuse new connections; open ones live on."""
        for server in self.servers:
            server.close()

    def close_idle(self) -> None:
        """Close what is idle for `DRAINING_IDLE_S` from now on."""
        self.config.timeout_keep_alive = DRAINING_IDLE_S
        for connection in list(self.server_state.connections):
            connection.limit_idle(DRAINING_IDLE_S)


def uvicorn_config(serving: Serving) -> uvicorn.Config:
    """Return how HTTP is served."""
    return uvicorn.Config(
        create_app(serving),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=serving.config.keep_alive_timeout_s,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
