"""The command ``stoker-operator``: read the settings, build the parts from the bottom up, run.

Exit status: 0 after SIGTERM or SIGINT; 1 when a part died or a test failed; 2 when a setting cannot work.
"""

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import uuid
from typing import Any

import click

from stoker_operator import __version__, handlers, logs, telemetry
from stoker_operator import selftest as trials
from stoker_operator.cluster.chat import ask
from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.inflight import HttpInFlightReader
from stoker_operator.cluster.transport import HttpTransport
from stoker_operator.config import ConfigError, OperatorConfig
from stoker_operator.leader import Elector
from stoker_operator.metrics import Metrics
from stoker_operator.reconcile.controller import Controller

logger = logging.getLogger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Run Stoker's control plane: ModelDeployments become serving pods."""


@main.command()
@click.option("--namespace", "-n", "namespaces", multiple=True, help="Serve this namespace; may be repeated.")
@click.option("--all-namespaces", "-A", is_flag=True, help="Serve the whole cluster (the default).")
@click.option("--runtime-image", help="Image of pods that name none.  [env: STOKER_RUNTIME_IMAGE]")
@click.option(
    "--runtime-image-pull-policy",
    help="Always, IfNotPresent or Never.  [env: STOKER_RUNTIME_IMAGE_PULL_POLICY]",
)
@click.option(
    "--runtime-image-pull-secrets",
    help="Secrets in the pods' own namespaces, as NAME,NAME.  [env: STOKER_RUNTIME_IMAGE_PULL_SECRETS]",
)
@click.option("--runtime-env", help="Default environment, a JSON object.  [env: STOKER_RUNTIME_ENV]")
@click.option(
    "--runtime-ca-bundle",
    help="What downloads trust: CONFIGMAP/KEY in the pods' namespace.  [env: STOKER_RUNTIME_CA_BUNDLE]",
)
@click.option(
    "--runtime-assigned-user/--no-runtime-assigned-user",
    default=None,
    help="Name no user and groups: the platform gives them.  [env: STOKER_RUNTIME_ASSIGNED_USER]",
)
@click.option(
    "--allow-file-sources/--no-allow-file-sources",
    default=None,
    help="Let file:// models mount a folder of the node.  [env: STOKER_ALLOW_FILE_SOURCES]",
)
@click.option(
    "--cordoned-nodes",
    help="drain or keep: whether pods leave a node that is only cordoned.  [env: STOKER_CORDONED_NODES]",
)
@click.option("--cluster-domain", help="DNS suffix of the cluster.  [env: STOKER_CLUSTER_DOMAIN]")
@click.option(
    "--leader-elect/--no-leader-elect",
    default=None,
    help="Write only while holding a Lease, for several replicas.  [env: STOKER_LEADER_ELECT]",
)
@click.option("--leader-elect-namespace", help="Of the Lease.  [env: STOKER_LEADER_ELECT_NAMESPACE]")
@click.option("--leader-elect-name", help="Of the Lease; stoker-operator.  [env: STOKER_LEADER_ELECT_NAME]")
@click.option(
    "--leader-elect-lease-duration-s",
    type=float,
    help="Of a leader that is not heard of; 7.  [env: STOKER_LEADER_ELECT_LEASE_DURATION_S]",
)
@click.option(
    "--leader-elect-renew-deadline-s",
    type=float,
    help="Of one that cannot renew its Lease; 5.  [env: STOKER_LEADER_ELECT_RENEW_DEADLINE_S]",
)
@click.option(
    "--leader-elect-retry-period-s",
    type=float,
    help="Between two tries to get or keep it; 1.  [env: STOKER_LEADER_ELECT_RETRY_PERIOD_S]",
)
@click.option("--log-level", help="debug, info, warning or error.  [env: STOKER_LOG_LEVEL]")
@click.option("--host", default="", help="Address of the two ports below; all, IPv4 and IPv6, by default.")
@click.option("--health-port", default=8080, show_default=True, help="Liveness probe: GET /healthz.")
@click.option("--metrics-port", default=8081, show_default=True, help="GET /metrics and GET /readyz.")
def run(
    namespaces: tuple[str, ...],
    all_namespaces: bool,
    host: str,
    health_port: int,
    metrics_port: int,
    **given: str | bool | float | None,
) -> None:
    """Reconcile until told to stop.

    Credentials come from the service account, else from the kubeconfig (KUBECONFIG). An option wins over
    its variable; --namespace and --all-namespaces win over STOKER_WATCH_NAMESPACES.
    """
    if namespaces and all_namespaces:
        raise click.UsageError("--namespace and --all-namespaces exclude each other")
    env = dict(os.environ)
    if namespaces or all_namespaces:
        env["STOKER_WATCH_NAMESPACES"] = ",".join(namespaces)
    for name, value in given.items():
        if value is not None:
            env[f"STOKER_{name.upper()}"] = str(value)
    try:
        config = OperatorConfig.from_env(env)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    logs.configure(config.log_level)
    # What the imports left behind lives for ever: the garbage collector need not look at it again.
    gc.collect()
    gc.freeze()
    try:
        asyncio.run(serve(config, host, health_port, metrics_port))
    except Exception:
        logger.exception("the operator died")
        raise SystemExit(1) from None


async def serve(config: OperatorConfig, host: str, health_port: int, metrics_port: int) -> None:
    """Run all parts; returns after a signal, raises when one of them died."""
    metrics = Metrics()
    transport = HttpTransport(handlers.login, observer=metrics)
    in_flight = HttpInFlightReader()
    host_name = socket.gethostname()
    elector = None
    if config.leader_election is not None:
        # A container that starts again has its pod's name, too, and is another one all the same.
        identity = f"{host_name}_{uuid.uuid4()}"
        elector = Elector(transport, config.leader_election, identity)
    client = KubeClient(transport if elector is None else elector.transport)
    controller = Controller(client, config, in_flight, metrics, instance=host_name, elector=elector)
    page = telemetry.app(metrics.registry, controller.readiness)
    health = telemetry.health_app(controller.health)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(controller.run(), name="controller"),
                group.create_task(telemetry.serve(page, host, metrics_port), name="telemetry"),
                group.create_task(telemetry.serve(health, host, health_port), name="health"),
            ]

            stopped = asyncio.Event()

            def stop() -> None:
                if not stopped.is_set():
                    stopped.set()
                    for task in tasks:
                        task.cancel()

            registry = handlers.registry(controller.hear, stop)
            await handlers.run(registry, config.watch_namespaces, stopped)
            stop()
    finally:
        await in_flight.close()
        await transport.close()


@main.command()
@click.option(
    "--name", required=True, help="Of the ModelDeployment; one left by an earlier test is replaced."
)
@click.option("--namespace", "-n", required=True, help="Where it is served; the operator must watch it.")
@click.option("--source", required=True, help="Its model, such as hf://OWNER/NAME or oci://IMAGE.")
@click.option("--resources", default="{}", help="Of its pod, as JSON.")
@click.option("--timeout-s", default=280.0, show_default=True, help="Until it has answered.")
def selftest(name: str, namespace: str, source: str, resources: str, timeout_s: float) -> None:
    """Serve a small model on a CPU, ask it a question, and delete it; `helm test` runs this."""
    try:
        wanted = json.loads(resources)
    except ValueError:
        wanted = None
    if not isinstance(wanted, dict):
        raise click.UsageError('--resources must be a JSON object such as {"limits": {"memory": "2Gi"}}')
    trial = trials.Trial(name=name, namespace=namespace, source=source, resources=wanted, timeout_s=timeout_s)
    logs.configure("warning")
    try:
        asyncio.run(try_model(trial))
    except trials.TrialFailed as failure:
        raise SystemExit(f"FAILED: {failure}") from None
    except asyncio.CancelledError:
        raise SystemExit("stopped") from None


async def try_model(trial: trials.Trial) -> None:
    """Try a model, and delete it also when told to stop."""
    task: asyncio.Task[Any] | None = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    transport = HttpTransport(handlers.login)
    try:
        await trials.run(trial, KubeClient(transport), ask, click.echo)
    finally:
        await transport.close()


if __name__ == "__main__":
    main(prog_name="stoker-operator")
