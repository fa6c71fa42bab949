"""How HTTP is listened for: uvicorn with our routes and without its signal handling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import uvicorn

from stoker_runtime.server.app import create_app
from stoker_runtime.server.connection import Connection
from stoker_runtime.server.serving import Serving

# For streams to send the event that ends them, once the drain is over.
_LAST_WORDS_S = 2


class HttpServer(uvicorn.Server):
    """Uvicorn without its signal handling: the drain is ours."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leave signals alone."""
        return nullcontext()

    def close_listeners(self) -> None:
        """Refuse new connections; open ones live on."""
        for server in self.servers:
            server.close()


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
