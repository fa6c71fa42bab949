from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from stoker_operator import telemetry


async def test_readyz_shows_what_is_waited_for_and_blocked() -> None:
    shown: dict[str, object] = {"waiting_for": [], "blocked": {"b": "403 Forbidden: pods is forbidden"}}
    for is_ready, status in ((True, 200), (False, 503)):
        page = telemetry.app(CollectorRegistry(), lambda is_ready=is_ready: (is_ready, shown))  # type: ignore[misc]
        async with TestClient(TestServer(page)) as client:
            response = await client.get("/readyz")
            assert (response.status, await response.json()) == (status, shown)
