"""A Docker engine of our own, for machines that have the package and nobody who started it. Root only.

It has its own socket, folders and control group, so it meets no other engine, and everything it starts can be
found and ended also after a crash. What it and the nodes in it change of the host (packet filter, links,
kernel parameters) is written down before it starts and put back when it stops.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import baseimage, cgroups, host, mounts, packages
from cluster.api import ClusterError
from cluster.daemons import is_running, start_daemon
from cluster.progress import say, step
from cluster.versions import cache_dir

RUN = Path("/run/stoker-docker")
CGROUP = "stoker-docker"
SOCKET = RUN / "docker.sock"
ADDRESS = f"unix://{SOCKET}"
PROGRAMS = {"dockerd": "docker.io", "docker": "docker.io", "iptables": "iptables", "ip": "iproute2"}
TABLES = [(tool, table) for tool in ("iptables", "ip6tables") for table in ("filter", "nat")]
SYSTEM = Path("/proc/sys")
# The first three are the engine's doing; the others that of kubelets in privileged containers.
# linux/capability.h; what a container of a machine lacks in practice.
CAPABILITIES = {21: "CAP_SYS_ADMIN", 24: "CAP_SYS_RESOURCE", 25: "CAP_SYS_TIME", 30: "CAP_AUDIT_CONTROL"}
PARAMETERS = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/forwarding",
    *mounts.TUNABLES,
)


@dataclass(frozen=True)
class HostState:
    """What an engine changes of its host.

    Attributes:
        rules: what `TOOL -t TABLE -S` lists, by "TOOL TABLE".
        parameters: kernel parameters, by their path below /proc/sys.
        links: network interfaces.
    """

    rules: Mapping[str, list[str]]
    parameters: Mapping[str, str]
    links: list[str]


def undo_commands(before: HostState, now: HostState) -> list[list[str]]:
    """The commands that take an engine's own rules, chains and bridges away and put policies back.

    Rules of others stay, also when they came meanwhile: an engine's name its chains or its bridges.
    """
    commands = []
    for key, lines in now.rules.items():
        tool, table = key.split()
        known = before.rules.get(key, [])
        fresh = [line for line in lines if line not in known]
        chains = [line.split()[1] for line in fresh if line.startswith("-N DOCKER")]
        policies = [line for line in known if line.startswith("-P ") and line not in lines]
        rules = [
            line.split(maxsplit=1)[1]
            for line in fresh
            if re.match(r"-A (?!DOCKER)", line) and re.search(r"DOCKER|docker0|\bbr-[0-9a-f]{12}\b", line)
        ]
        do = [tool, "--wait", "--table", table]
        commands += [[*do, *policy.split()] for policy in policies]
        commands += [[*do, "-D", *shlex.split(rule)] for rule in rules]
        commands += [[*do, action, chain] for action in ("-F", "-X") for chain in chains]
    bridges = [name for name in now.links if re.fullmatch(r"docker0|br-[0-9a-f]{12}", name)]
    commands += [["ip", "link", "delete", name] for name in bridges if name not in before.links]
    return commands


def changed_parameters(before: HostState, now: HostState) -> dict[str, str]:
    """The kernel parameters that are not what they were, with the value they had."""
    return {name: value for name, value in before.parameters.items() if now.parameters.get(name) != value}


def lacks() -> str | None:
    """What keeps us from starting an engine here; None when nothing does."""
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        return "starting one takes Linux and root"
    if packages.missing(PROGRAMS) and baseimage.planned() is None:
        return "there is no dockerd on PATH, and it can be installed on Debian and Ubuntu only"
    return None


def answers(address: str | None = None) -> bool:
    """Whether an engine answers: the one at an address, by default the one that docker would talk to."""
    where = ["--host", address] if address else []
    return shutil.which("docker") is not None and host.succeeds(["docker", *where, "info"], timeout_s=20)


def look() -> HostState:
    """Read what an engine may change."""
    rules = {
        f"{tool} {table}": host.run([tool, "--wait", "--table", table, "-S"]).splitlines()
        for tool, table in TABLES
        # A kernel without IPv6 has no table of it.
        if host.succeeds([tool, "--wait", "--table", table, "-S"])
    }
    files = {name: SYSTEM / name for name in PARAMETERS}
    parameters = {name: path.read_text().strip() for name, path in files.items() if path.exists()}
    return HostState(rules, parameters, sorted(path.name for path in Path("/sys/class/net").iterdir()))


def missing_capabilities(status: str) -> list[str]:
    """Which of the capabilities that nodes ask for a process can never get, from its /proc/PID/status."""
    found = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    bounds = int(found[1], 16) if found else -1
    return [name for number, name in CAPABILITIES.items() if not bounds >> number & 1]


def runc_wrapper(runc: str, missing: Iterable[str]) -> str:
    """A stand-in for runc that asks for no capability that cannot be given.

    Privileged containers, which nodes are, ask for all of them, and runc fails over the first that the
    machine withholds.
    """
    edits = " ".join(f"-e 's/\"{name}\",//g' -e 's/,\"{name}\"//g'" for name in missing)
    return f"""#!/bin/sh
last=
for argument in "$@"; do
    case $last in
    --bundle) sed -i {edits} "$argument/config.json" ;;
    --process) sed -i {edits} "$argument" ;;
    esac
    last=$argument
done
exec {runc} "$@"
"""


def command(missing: list[str]) -> list[str]:
    """The engine's command line; writes the wrapper that it names where capabilities are missing."""
    dockerd, runc = packages.find("dockerd"), packages.find("runc")
    if dockerd is None or runc is None:
        raise ClusterError("dockerd or runc is not on PATH.")
    options = []
    if missing:
        wrapper = RUN / "runc"
        wrapper.write_text(runc_wrapper(runc, missing))
        wrapper.chmod(0o755)
        options = [f"--add-runtime=stoker={wrapper}", "--default-runtime=stoker"]
    return [
        dockerd,
        f"--host={ADDRESS}",
        f"--data-root={cache_dir() / 'docker'}",
        f"--exec-root={RUN}/exec",
        f"--pidfile={RUN}/engine.pid",
        f"--cgroup-parent=/{CGROUP}/containers",
        "--exec-opt=native.cgroupdriver=cgroupfs",
        *options,
    ]


def up() -> str:
    """Start the engine unless it runs, and wait until it answers.

    Returns:
        The value for DOCKER_HOST.

    Raises:
        ClusterError: it cannot be started here, or did not answer in time; the text has the end of its log.
    """
    if answers(ADDRESS):
        return ADDRESS
    problem = lacks()
    if problem:
        raise ClusterError(f"no Docker engine answers, and {problem}.")
    packages.ensure(PROGRAMS)
    down()  # what a crash left
    with step("start a Docker engine"):
        RUN.mkdir(mode=0o711)
        (RUN / "before.json").write_text(json.dumps(dataclasses.asdict(look()), indent=1))
        for cgroup in (f"{CGROUP}/engine", f"{CGROUP}/containers"):
            cgroups.make(cgroup)
        (cache_dir() / "docker").mkdir(parents=True, exist_ok=True)
        start_daemon(
            "dockerd",
            command(missing_capabilities(Path("/proc/self/status").read_text())),
            cgroup=f"{CGROUP}/engine",
            folder=RUN,
            logs=RUN,
            netns=None,
            path=packages.SYSTEM_PATH,
        )
        pid_file, log = RUN / "dockerd.pid", RUN / "dockerd.log"
        host.wait_for(
            "an answer of the Docker engine",
            lambda: answers(ADDRESS) or not is_running(pid_file),
            60,
            lambda: host.tail(log),
        )
        if not is_running(pid_file):
            text = host.tail(log)
            down()
            raise ClusterError(f"dockerd ended. {text}")
    return ADDRESS


def down() -> None:
    """Stop the engine, end what runs in it, and put back what it changed; images stay for the next time.

    Safe when there is none, and after a crash.
    """
    if not RUN.exists():
        return
    if answers(ADDRESS):
        docker = ["docker", "--host", ADDRESS]
        containers = host.run([*docker, "ps", "--all", "--quiet"]).split()
        if containers:
            host.run([*docker, "rm", "--force", "--volumes", *containers], timeout_s=300)
        host.run([*docker, "network", "prune", "--force"])
    stop_daemon()
    cgroups.kill_members(CGROUP)
    unmount(RUN, cache_dir() / "docker")
    cgroups.remove(CGROUP)
    put_back()
    shutil.rmtree(RUN)


def put_back() -> None:
    """Undo what changed of the host since the notes were written.

    Raises:
        ClusterError: something is still as the engine made it.
    """
    notes = RUN / "before.json"
    if not notes.exists():
        return
    before, now = HostState(**json.loads(notes.read_text())), look()
    for line in undo_commands(before, now):
        host.run(line)
    for name, value in changed_parameters(before, now).items():
        (SYSTEM / name).write_text(value)
    now = look()
    left = [shlex.join(line) for line in undo_commands(before, now)] + list(changed_parameters(before, now))
    if left:
        raise ClusterError(f"the Docker engine is gone, and these of its traces stay: {'; '.join(left)}")


def stop_daemon() -> None:
    """Ask dockerd to end and wait; what does not listen is killed with its cgroup afterwards."""
    pid_file = RUN / "dockerd.pid"
    if is_running(pid_file):
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        try:
            host.wait_for("the end of dockerd", lambda: not is_running(pid_file), 30)
        except ClusterError as error:
            say(f"    {error}")


def unmount(*folders: Path) -> None:
    """Unmount what is mounted below folders, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    paths = [Path(point.replace("\\040", " ")) for point in points]
    for path in reversed(paths):
        if any(path.is_relative_to(folder) for folder in folders):
            host.run(["umount", "--lazy", str(path)])


@contextmanager
def engine() -> Iterator[str]:
    """A Docker engine for as long as the context lasts: the one that answers, else one of our own.

    DOCKER_HOST names it to everything that is started within.

    Yields:
        Which one it is, for a person.

    Raises:
        ClusterError: none answers and none can be started.
    """
    if answers():
        yield "the Docker engine that answers"
        return
    found = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = up()
    try:
        yield "a Docker engine of our own"
    finally:
        down()
        if found is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = found
