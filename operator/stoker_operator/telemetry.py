"""The operator's own HTTP page: ``/metrics`` for Prometheus and ``/readyz`` for the readiness probe."""

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


def app(registry: CollectorRegistry, unsynced: Callable[[], list[str]]) -> web.Application:
    """The page.

    Args:
        registry: what to show under /metrics.
        unsynced: what the operator still waits for; it is ready when nothing is left.
    """

    async def metrics(request: web.Request) -> web.Response:
        del request
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def readyz(request: web.Request) -> web.Response:
        del request
        waiting = unsynced()
        return web.json_response({"waiting_for": waiting}, status=503 if waiting else 200)

    result = web.Application()
    result.router.add_get("/metrics", metrics)
    result.router.add_get("/readyz", readyz)
    return result


async def serve(application: web.Application, host: str, port: int) -> None:
    """Serve until cancelled."""
    runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
