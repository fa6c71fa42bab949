"""Compiles the pinned Go tools into the cache, once per pin, and says where the binaries are.

A build goes into a temporary folder that is renamed when it is whole, so an interrupted one is never mistaken
for a finished one and two runs at once do not disturb each other.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import host
from cluster.api import ClusterError
from cluster.progress import say, step
from cluster.versions import Tool, cache_dir, load_tools, tools_of

MIN_GO = (1, 26)
PACKAGES_PER_LINE = 250
# No inlining, no debug information, one thread for each package: with the collector's settings this took the
# compiler's time down to 55%. A cluster for tests can do with slower code; its binaries are stripped anyway.
GCFLAGS = "-l -dwarf=false -c=1"
# What a compiler process needs for the largest packages, and what none ever needed.
MIN_SHARE_MIB = 512
MAX_SHARE_MIB = 2048


@dataclass(frozen=True)
class Binaries:
    """Paths of built tools by the name they are started by."""

    paths: Mapping[str, Path]

    def __getitem__(self, name: str) -> str:
        """The path of one binary.

        Raises:
            ClusterError: the stage that was built does not contain it.
        """
        if name not in self.paths:
            raise ClusterError(f"{name} is not among the built tools: {', '.join(sorted(self.paths))}")
        return str(self.paths[name])

    def folder(self, name: str) -> str:
        """The folder a binary is in."""
        return str(Path(self[name]).parent)


def go_version() -> tuple[int, int] | None:
    """Version of the Go toolchain on PATH, None without one."""
    if shutil.which("go") is None:
        return None
    answer = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False)
    found = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else None


def target(tool: Tool) -> Path:
    """Where the binaries of a tool are, built or not."""
    return cache_dir() / "tools" / f"{tool.name}-{tool.version}-{tool.key}"


def is_built(tools: Iterable[Tool]) -> bool:
    """Whether a stage could start without a compiler."""
    return all(target(tool).is_dir() for tool in tools)


def ensure(stage: str) -> Binaries:
    """Build what a stage needs and is not in the cache yet.

    Raises:
        ClusterError: no Go toolchain, or one too old, or a compile that failed (with the end of its output).
    """
    tools = tools_of(stage, load_tools())
    missing = [tool for tool in tools if not target(tool).is_dir()]
    if missing:
        found = go_version()
        if found is None or found < MIN_GO:
            names = [tool.name for tool in missing]
            have = "none is on PATH" if found is None else f"this is {found[0]}.{found[1]}"
            raise ClusterError(f"Go {MIN_GO[0]}.{MIN_GO[1]} or newer must build {', '.join(names)}; {have}.")
    for module in dict.fromkeys(tool.module for tool in missing):
        compile_tools([tool for tool in missing if tool.module == module])
    return Binaries({name: target(tool) / name for tool in tools for name in tool.binaries()})


def build_command(tools: Sequence[Tool], output: Path) -> list[str]:
    """The compiler's command line for all binaries of tools that share a module.

    One command, because then one tool's code compiles while another one is linked, which takes one core only.
    """
    ldflags = " ".join(["-s", "-w", *(tool.ldflags for tool in tools if tool.ldflags)])
    return [
        "go",
        "build",
        "-v",
        "-mod=readonly",
        "-buildvcs=false",
        "-trimpath",
        f"-gcflags=all={GCFLAGS}",
        f"-ldflags={ldflags}",
        tags_of(tools),
        f"-o={output}/",
        *packages_of(tools),
    ]


def tags_of(tools: Iterable[Tool]) -> str:
    """The flag with the build tags of tools that share a module."""
    return "-tags=" + ",".join(dict.fromkeys(tag for tool in tools for tag in tool.tags))


def packages_of(tools: Iterable[Tool]) -> list[str]:
    """The main packages of tools."""
    return [package for tool in tools for package in tool.packages.values()]


def compiler_environment(available_bytes: int, num_cpus: int) -> dict[str, str]:
    """Settings of the Go compiler's own garbage collector.

    Almost every one of some 3,600 compiler processes ends before its garbage is worth collecting, so each
    collects only when it comes near its share of the memory.

    Args:
        available_bytes: memory that nobody uses now.
        num_cpus: how many packages are compiled at once.
    """
    share_mib = available_bytes // (2 * num_cpus) >> 20
    if share_mib < MIN_SHARE_MIB:
        return {}
    return {"GOGC": "off", "GOMEMLIMIT": f"{min(share_mib, MAX_SHARE_MIB)}MiB"}


def run_compiler(tools: Sequence[Tool], output: Path) -> None:
    """Compile tools that share a module, and say how far it is, because a first time takes minutes.

    Raises:
        ClusterError: it failed; the end of its output is in the text.
    """
    module, names = tools[0].module, " ".join(tool.name for tool in tools)
    memory = compiler_environment(available_memory(), os.cpu_count() or 1)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", **memory}
    listing = ["go", "list", "-mod=readonly", tags_of(tools), "-deps", *packages_of(tools)]
    with step(f"get the sources of {names}"):
        listed = subprocess.run(
            listing, cwd=module, env=environment, capture_output=True, text=True, check=False
        )
        if listed.returncode:
            raise ClusterError(f"`{shlex.join(listing)}` in {module} failed:\n{listed.stderr[-3000:]}")
    total = len(listed.stdout.split())
    command = build_command(tools, output)
    tail: deque[str] = deque(maxlen=40)
    with (
        step(f"compile {names}: at most {total} packages (first time only)"),
        subprocess.Popen(
            command, cwd=module, env=environment, stderr=subprocess.PIPE, text=True, umask=host.UMASK
        ) as compiler,
    ):
        for number, line in enumerate(compiler.stderr or (), start=1):
            tail.append(line)
            if number % PACKAGES_PER_LINE == 0:
                say(f"    {number} of {total} packages")
        status = compiler.wait()
        if status:
            said = "".join(tail)
            raise ClusterError(f"`{shlex.join(command)}` in {module} failed with {status}:\n{said}")


def available_memory() -> int:
    """Bytes of memory that could be used now without swapping."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def compile_tools(tools: Sequence[Tool]) -> None:
    """Compile tools that share a module into the cache; a second caller waits for the first."""
    folder = cache_dir() / "tools"
    with host.locked(folder / f".{tools[0].module.name}.lock"):
        missing = [tool for tool in tools if not target(tool).is_dir()]
        if not missing:
            return
        work = Path(tempfile.mkdtemp(prefix=f".{tools[0].module.name}-", dir=folder))
        try:
            run_compiler(missing, work)
            for tool in missing:
                place(tool, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def place(tool: Tool, built: Path) -> None:
    """Move a tool's binaries from the compiler's output to where they are kept, all or nothing."""
    partial = built / f"{tool.name}.partial"
    partial.mkdir(mode=0o755)
    for name in tool.packages:
        (built / name).rename(partial / name)
        for link in tool.links.get(name, []):
            (partial / link).symlink_to(name)
    partial.rename(target(tool))
