"""Says what this machine has and lacks, before anything is downloaded.

    python3 e2e/preflight.py                everything, and whether each command could run here, and how long
    python3 e2e/preflight.py --for demo     what is missing for `make demo`; nothing when nothing is
    python3 e2e/preflight.py --python-only  whether this Python can make the virtual environment

The Makefile calls it first, so that nobody waits for downloads only to read that Docker or Go is missing. It
runs on a bare Python and needs no package.
"""

import python_version  # noqa: F401  (ends this script where the Python is too old)

# isort: split
import dataclasses
import getpass
import importlib.util
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import disks
import needs
from cluster import failures, shell
from cluster.progress import say
from disks import Disk
from needs import Need

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
PREFLIGHT = "STOKER_PREFLIGHT"  # "warn" turns what is missing into a warning
GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """What decides which commands can run.

    Attributes:
        lacks: back end -> what keeps this machine from it; None when nothing does.
        disks: folder that grows -> the file system that it is on.
        memory_gib: memory that is available.
        is_built: whether the demo's environment, the tools of the back end and the images are there.
        is_installed: whether everything that the tests need is installed.
        is_cuda: whether torch is the CUDA build.
        to_compile: the clusters, as in `needs.Need`, for which something is still to be compiled.
        unwritable: folders that this user may not write to, with what to do about it.
    """

    lacks: dict[str, str | None]
    disks: dict[Path, Disk]
    memory_gib: float
    is_built: bool
    is_cuda: bool
    is_installed: bool = False
    to_compile: frozenset[str] = frozenset()
    unwritable: dict[Path, str] = dataclasses.field(default_factory=dict)


def python_problem(version: tuple[int, ...], has_ensurepip: bool, has_venv: bool) -> str | None:
    """Return what the Python that makes the virtual environment lacks.

    Args:
        version: its version.
        has_ensurepip: whether it can put pip into a new environment; Debian and Ubuntu package that apart.
        has_venv: whether the environment exists already.
    """
    if not has_ensurepip and not has_venv:
        package = f"python{version[0]}.{version[1]}-venv"
        return f"Python's ensurepip module. On Debian and Ubuntu, as root: apt-get install {package}"
    return None


def cluster_problem(cluster: str, lacks: dict[str, str | None]) -> str | None:
    """Return what this machine lacks to run a cluster; None when it can, or none is needed.

    Args:
        cluster: the back end that is needed, as in `needs.Need`.
        lacks: as in `Machine`.
    """
    if cluster == needs.NONE:
        return None
    if cluster != needs.ANY:
        return f"{needs.NEEDED[cluster]}: {lacks[cluster]}" if lacks[cluster] else None
    if not (lacks[needs.KIND] and lacks[needs.NATIVE]):
        return None
    return (
        "a way to run Kubernetes, one of these:\n"
        f"    Docker and kind: {lacks[needs.KIND]}\n"
        f"    root and Go, without Docker: {lacks[needs.NATIVE]}"
    )


def is_ready(need: Need, machine: Machine) -> bool:
    """Tell whether an earlier run left everything that a command needs."""
    takes_cluster, takes_tests = need.cluster != needs.NONE, need.command != "make demo"
    return (machine.is_built or not takes_cluster) and (machine.is_installed or not takes_tests)


def disk_problems(need: Need, machine: Machine) -> list[str]:
    """Return which disks are too full."""
    is_again = is_ready(need, machine)
    needed = needs.AGAIN_GIB if is_again else need.disk_gib + needs.CUDA_GIB * machine.is_cuda
    hint = f". {needs.CUDA_GIB} less with the CPU build of torch: see the README"
    environment = needs.VENV_GIB + needs.CUDA_GIB * machine.is_cuda
    compiles, has_cluster = need.cluster in machine.to_compile, need.cluster != needs.NONE
    found = []
    for folder, disk in machine.disks.items():
        wanted = disks.needed_gib(needed, environment, disk, compiles=compiles, has_cluster=has_cluster)
        if disk.free_gib < wanted:
            text = f"disk space: {disk.free_gib:.1f} GiB are free at {folder}, {wanted} are needed"
            found.append(text + hint * (machine.is_cuda and not is_again))
    return found


def problems_of(need: Need, machine: Machine) -> list[str]:
    """Return everything that a command lacks here."""
    found = [cluster_problem(need.cluster, machine.lacks), *disk_problems(need, machine)]
    if machine.memory_gib < need.memory_gib:
        found.append(f"memory: {machine.memory_gib:.1f} GiB are available, {need.memory_gib} are needed")
    found += [f"write access to {folder}: {step}" for folder, step in machine.unwritable.items()]
    return [problem for problem in found if problem]


def choices(command: str, machine: Machine) -> list[tuple[Need, list[str]]]:
    """Return the ways to run a command that this machine would choose between, with what each lacks.

    kind is chosen where it is; the cluster of the other ways is then no choice.
    """
    rows = [need for need in needs.NEEDS if need.command == f"make {command}"]
    can = [need for need in rows if cluster_problem(need.cluster, machine.lacks) is None]
    return [(need, problems_of(need, machine)) for need in (can[:1] or rows)]


def problems_for(command: str, machine: Machine) -> list[str]:
    """Return everything that keeps this machine from running a command."""
    found = choices(command, machine)
    if any(not lacking for _, lacking in found):
        return []
    if len(found) > 1:  # no way at all to run the cluster, so both are told
        both = cluster_problem(needs.ANY, machine.lacks)
        rest = [text for need, _ in found[-1:] for text in problems_of(need, machine)[1:]]
        return [text for text in (both, *rest) if text]
    return found[0][1]


def verdict(command: str, machine: Machine) -> str:
    """Say in one line whether a command can run here, and about how long it takes."""
    lacking = problems_for(command, machine)
    if lacking:
        return "no: " + "; ".join(short(text) for text in lacking)
    need = choices(command, machine)[0][0]
    warm, cold = needs.duration(need.warm_s), needs.duration(need.cold_min * 60)
    return (
        f"yes, about {warm}" if is_ready(need, machine) else f"yes, about {cold} the first time, then {warm}"
    )


def short(problem: str) -> str:
    """Return the first clause of a problem, for a table; the whole is told below it."""
    return re.split(r"[:,]\n|, one of these|\. ", problem)[0].split("\n")[0]


def unwritable(cache: Path) -> dict[Path, str]:
    """Return the folders that this user may not write to, with what to do about it."""
    mine = "run as the user that owns it, or as root `chown -R {user} '{folder}'`"
    found = {}
    for folder in (REPOSITORY, VENV):
        if folder.exists() and not os.access(folder, os.W_OK):
            found[folder] = mine.format(user=getpass.getuser(), folder=folder)
    if not os.access(disks.existing(cache), os.W_OK):
        found[cache] = "name another folder with `XDG_CACHE_HOME=FOLDER`"
    return found


def available_gib() -> float:
    """Memory that programs can get, with free swap; what a control group of this process allows, if less."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return float("inf")  # not Linux: nothing is known
    fields = {line.split(":")[0]: int(line.split()[1]) for line in path.read_text().splitlines()}
    found = (fields["MemAvailable"] + fields["SwapFree"]) * 1024
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        folder = Path("/sys/fs/cgroup")
        text = (folder / limit).read_text().strip() if (folder / limit).exists() else ""
        if text.isdigit():
            found = min(found, max(0, int(text) - int((folder / used).read_text())))
    return found / GIB


def look() -> Machine:
    """Look at this machine; changes nothing."""
    from cluster import build, dockerd, prerequisites
    from cluster.versions import cache_dir, load_tools, tools_of

    wheels = Path(os.environ.get("STOKER_WHEELS") or REPOSITORY.parent / "shared" / "wheels")
    lacks = {needs.KIND: prerequisites.kind_lacks(), needs.NATIVE: prerequisites.native_lacks()}
    # `make test-kind` is kind whatever is asked for otherwise.
    lacks[needs.ENGINE] = lacks[needs.KIND] and (dockerd.lacks() or prerequisites.no_client())
    lacks |= prerequisites.ruled_out()
    tools = lacks[needs.KIND] is None or build.is_built(tools_of("e2e", load_tools()))
    return Machine(
        lacks=lacks,
        disks=disks.look(REPOSITORY),
        to_compile=disks.to_compile(lacks),
        memory_gib=available_gib(),
        is_built=(VENV / ".demo").exists() and any(cache_dir().glob("images/*.tar")) and tools,
        is_installed=(VENV / ".installed").exists(),
        is_cuda=not os.environ.get("TORCH_INDEX_URL") and not any(wheels.glob("torch-*.whl")),
        unwritable=unwritable(cache_dir()),
    )


def system() -> str:
    """Return what the operating system calls itself."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform(terse=True)


def report(machine: Machine) -> str:
    """Say what the machine has, and for each command whether it could run."""
    free = ", ".join(f"{disk.free_gib:.0f} GiB free at {folder}" for folder, disk in machine.disks.items())
    commands = list(dict.fromkeys(need.command for need in needs.NEEDS))
    lines = [
        f"This machine: {system()}, {os.cpu_count()} cores, "
        f"{machine.memory_gib:.1f} GiB of memory available, {free}",
        *(f"  {name}: {machine.lacks[name] or 'can run'}" for name in (needs.KIND, needs.NATIVE)),
        "",
        *(f"  {command:16}{verdict(command.removeprefix('make '), machine)}" for command in commands),
    ]
    return "\n".join(lines)


def again() -> str:
    """The command that a person typed."""
    return shell.again("make preflight")


def main(arguments: list[str]) -> int:
    """Print what is asked for; the exit status says whether anything is missing."""
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    python = python_problem(tuple(sys.version_info[:3]), has_ensurepip, (VENV / "bin" / "uv").exists())
    if python:
        found = [python]
    elif "--python-only" in arguments:
        from cluster.versions import cache_dir

        found = [f"write access to {folder}: {step}" for folder, step in unwritable(cache_dir()).items()]
    elif "--for" in arguments:
        found = problems_for(arguments[arguments.index("--for") + 1], look())
    else:
        machine = look()
        print(report(machine))
        found = problems_for("demo", machine)
    if found:
        print("This machine lacks:", file=sys.stderr)
    for problem in found:
        print(f"  - {problem}", file=sys.stderr)
    if found:
        if os.environ.get(PREFLIGHT) == "warn" and not python:
            print(f"{PREFLIGHT} is warn: going on all the same.", file=sys.stderr)
            return 0
        way = f"; `{PREFLIGHT}=warn {again()}` tries all the same" if not python else ""
        print(f"\nNext: get what is named, then `{again()}`{way}.", file=sys.stderr)
    return 1 if found else 0


def run(arguments: list[str]) -> int:
    """As `main`, and what tells it to end is no traceback."""
    try:
        with shell.terminable():
            return main(arguments)
    except KeyboardInterrupt:
        say(f"\n{failures.line(f'`{again()}` begins again.')}")
        return shell.INTERRUPTED


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
