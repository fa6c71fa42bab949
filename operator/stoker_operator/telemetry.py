"""The operator's own HTTP pages: ``/metrics`` for Prometheus, ``/readyz`` and ``/healthz`` for probes."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


def app(registry: CollectorRegistry, readiness: Callable[[], tuple[bool, dict[str, Any]]]) -> web.Application:
    """The page.

    Args:
        registry: what to show under /metrics.
        readiness: whether the operator is ready, and what /readyz shows.
    """

    async def metrics(request: web.Request) -> web.Response:
        del request
        # With thousands of ModelDeployments it takes long enough for passes to wait behind it.
        page = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def readyz(request: web.Request) -> web.Response:
        del request
        is_ready, shown = readiness()
        return web.json_response(shown, status=200 if is_ready else 503)

    result = web.Application()
    result.router.add_get("/metrics", metrics)
    result.router.add_get("/readyz", readyz)
    return result


def health_app(health: Callable[[], dict[str, Any]]) -> web.Application:
    """The page of the liveness probe.

    Args:
        health: what it shows; raises when the process should be restarted.
    """

    async def healthz(request: web.Request) -> web.Response:
        del request
        return web.json_response(health())

    result = web.Application()
    result.router.add_get("/healthz", healthz)
    return result


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: an address; empty for every address of the machine, IPv4 and IPv6, because a pod may have either
            or both.
        port: 0 picks a free one.
    """
    takes_both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if takes_both or ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=takes_both)


async def serve(application: web.Application, host: str, port: int) -> None:
    """Serve until cancelled; see ``listen``."""
    runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listen(host, port)).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
