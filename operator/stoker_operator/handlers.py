"""What kopf does for us: logs in, watches ModelDeployments, handles signals.

The handlers decide nothing: an event becomes a key in the queue. Only ``on.event`` is used, because kopf's
change handlers write annotations and its daemons, timers and delete handlers add finalizers.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import kopf

from stoker_operator.cluster.resources import MODEL_DEPLOYMENTS
from stoker_operator.cluster.transport import Credentials

Hear = Callable[[tuple[str, str], Mapping[str, Any]], None]


class NoDiffs(kopf.DiffBaseStorage):
    """What kopf compares objects with for its change handlers, of which there are none: nothing.

    It would copy each object anew at each event, of which a start has one for every ModelDeployment.
    """

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return nothing of an object."""
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> None:
        """Nothing was stored."""

    def store(self, **_: Any) -> None:
        """Store nothing."""


class EndlessBackoff:
    """Pauses between kopf's retries in seconds, without end: an outage is no reason to restart."""

    def __iter__(self) -> Iterator[float]:
        """1, 2, 4, ... up to 30 again and again."""
        pause = 1.0
        while True:
            yield pause
            pause = min(pause * 2, 30.0)


def settings() -> kopf.OperatorSettings:
    """Settings of kopf: no Events, no annotations, no scan for new kinds, no peering."""
    result = kopf.OperatorSettings()
    result.posting.enabled = False
    result.scanning.disabled = True
    result.peering.standalone = True
    result.networking.request_timeout = 15.0
    result.networking.error_backoffs = EndlessBackoff()
    result.watching.server_timeout = 300
    result.persistence.diffbase_storage = NoDiffs()
    # A start has an event for each ModelDeployment, and each of them a task that lives so long.
    result.queueing.idle_timeout = 0.1
    result.process.ultimate_exiting_timeout = 20.0
    return result


def connection_info() -> kopf.ConnectionInfo:
    """Credentials of the service account we run under, else of the kubeconfig.

    Raises:
        kopf.LoginError: there is neither.
    """
    options = settings()
    found = kopf.login_with_service_account(settings=options) or kopf.login_with_kubeconfig(settings=options)
    if found is None:
        raise kopf.LoginError("no Kubernetes credentials: no service account and no kubeconfig (KUBECONFIG)")
    return found


def login() -> Credentials:
    """The same credentials for our own API client."""
    found = connection_info()
    tls = found.as_ssl_context() if found.server.startswith("https:") else None
    return Credentials(found.server, found.as_http_headers(), tls, found.proxy_url)


def registry(hear: Hear, stop: Callable[[], None]) -> kopf.OperatorRegistry:
    """The handlers.

    Args:
        hear: told (namespace, name) and the object of each event, those of our own writes included.
        stop: called when the process is told to end, while tasks may still finish; perhaps twice.
    """
    result = kopf.OperatorRegistry()

    async def take_signals(**_: Any) -> None:
        # kopf cleans up when its watches have ended, seconds after the signal: another could lead by then.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)

    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        return connection_info()

    async def enqueue(namespace: str | None, name: str | None, body: Mapping[str, Any], **_: Any) -> None:
        hear((namespace or "", name or ""), body)

    async def clean_up(**_: Any) -> None:
        stop()

    kopf.on.login(registry=result, id="login", errors=kopf.ErrorsMode.PERMANENT)(log_in)
    kopf.on.event(
        MODEL_DEPLOYMENTS.group,
        MODEL_DEPLOYMENTS.version,
        MODEL_DEPLOYMENTS.plural,
        registry=result,
        id="enqueue",
    )(enqueue)
    kopf.on.startup(registry=result, id="signals")(take_signals)
    kopf.on.cleanup(registry=result, id="stop")(clean_up)
    return result


def run(
    handlers: kopf.OperatorRegistry, namespaces: tuple[str, ...], stopped: asyncio.Event
) -> Awaitable[None]:
    """The loop of kopf; ends once ``stopped`` is set, raises when one of its tasks died."""
    return kopf.operator(
        registry=handlers,
        settings=settings(),
        stop_flag=stopped,
        clusterwide=not namespaces,
        namespaces=namespaces,
    )
