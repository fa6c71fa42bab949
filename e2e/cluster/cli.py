"""The command line: up, down, status, and what a person needs in between."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from cluster import build, dockerd, failures, host, leftovers, shell
from cluster.api import Cluster, ClusterError
from cluster.backends import DEFAULT_NAME, needed_stages, open_cluster
from cluster.prerequisites import BACKENDS
from cluster.versions import STAGES


class ClusterGroup(click.Group):
    """Shows a ClusterError as one message, and what to do next, instead of a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ClusterError as error:
            command = shell.again(f"python e2e/cluster {shlex.join(sys.argv[1:])}")
            raise click.ClickException(failures.render(error, command)) from error


@click.group(cls=ClusterGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--name", envvar="STOKER_CLUSTER", default=DEFAULT_NAME, show_default=True, help="Which cluster."
)
@click.option(
    "--backend",
    envvar="STOKER_CLUSTER_BACKEND",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="auto: kind where a Docker engine answers, else native.",
)
@click.pass_context
def main(ctx: click.Context, name: str, backend: str) -> None:
    """A real Kubernetes cluster on this machine: kind with Docker, or native (root and Go) without."""
    ctx.obj = (name, backend)


def cluster_of(ctx: click.Context) -> Cluster:
    """The cluster that the group's options name."""
    name, backend = ctx.obj
    return open_cluster(name, backend)


@main.command()
@click.option("--nodes", default=2, show_default=True, type=click.IntRange(1), help="How many nodes.")
@click.option(
    "--gpus", default=4, show_default=True, type=click.IntRange(0), help="nvidia.com/gpu on each node."
)
@click.pass_context
def up(ctx: click.Context, nodes: int, gpus: int) -> None:
    """Bring the cluster up and wait until it serves."""
    cluster = cluster_of(ctx)
    cluster.up(num_nodes=nodes, gpus_per_node=gpus)
    click.echo(f"export KUBECONFIG={cluster.kubeconfig}")


@main.command()
@click.pass_context
def down(ctx: click.Context) -> None:
    """Remove the cluster and everything it made."""
    cluster_of(ctx).down()


@main.command()
@click.pass_context
def status(ctx: click.Context) -> None:
    """Show nodes and pods."""
    cluster = cluster_of(ctx)
    click.echo(f"nodes that run: {' '.join(cluster.node_names())}")
    for what in ("nodes", "pods"):
        command = cluster.kubectl("get", what, "--all-namespaces", "--output=wide")
        click.echo(host.run(command).rstrip())


@main.command()
@click.pass_context
def kubeconfig(ctx: click.Context) -> None:
    """Print the path of the administrator's kubeconfig."""
    click.echo(cluster_of(ctx).kubeconfig)


@main.command()
@click.argument(
    "archives", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.pass_context
def load(ctx: click.Context, archives: tuple[Path, ...]) -> None:
    """Put the images of archives (OCI, or from `docker save`) on every node."""
    cluster = cluster_of(ctx)
    for archive in archives:
        cluster.load_image(archive)


@main.command("add-node")
@click.pass_context
def add_node(ctx: click.Context) -> None:
    """Add a worker and print its name."""
    click.echo(cluster_of(ctx).add_node())


@main.command("kill-node")
@click.argument("node")
@click.pass_context
def kill_node(ctx: click.Context, node: str) -> None:
    """Cut a worker's power."""
    cluster_of(ctx).kill_node(node)


@main.command("exec", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def execute(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Run a command in the network of the control-plane node, where Service addresses answer."""
    cluster = cluster_of(ctx)
    line = cluster.inside(*command)
    os.execvp(line[0], line)


@main.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def kubectl(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Run kubectl with the administrator's credentials."""
    line = cluster_of(ctx).kubectl(*args)
    os.execv(line[0], line)


@main.command("engine-up")
def engine_up() -> None:
    """Start a Docker engine of our own (root, Debian or Ubuntu) and print the DOCKER_HOST line."""
    click.echo(f"export DOCKER_HOST={dockerd.up()}")


@main.command("engine-down")
def engine_down() -> None:
    """Stop that engine and put back what it changed of this machine; its images stay."""
    dockerd.down()


@main.command("build-tools")
@click.option(
    "--stage", type=click.Choice(STAGES), help="For which purpose; by default for all that can run here."
)
@click.pass_context
def build_tools(ctx: click.Context, stage: str | None) -> None:
    """Compile what a stage needs into the cache and print where it is."""

    def body() -> None:
        leftovers.sweep()
        for wanted in [stage] if stage else needed_stages():
            binaries = build.ensure(wanted)
            for name in sorted(binaries.paths):
                click.echo(f"{name}\t{binaries[name]}")

    ctx.exit(shell.run("make tools", body))
