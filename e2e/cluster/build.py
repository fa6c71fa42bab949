"""Compiles the pinned Go tools into the cache, once per pin, and says where the binaries are.

A build goes into a temporary folder that is renamed when it is whole, so an interrupted one is never mistaken
for a finished one and two runs at once do not disturb each other.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster import host
from cluster.api import ClusterError
from cluster.progress import say, step
from cluster.versions import Tool, cache_dir, load_tools, tools_of

MIN_GO = (1, 26)
PACKAGES_PER_LINE = 250


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
    for tool in missing:
        with step(f"compile {tool.name} {tool.version} (first time only)"):
            compile_tool(tool)
    return Binaries({name: target(tool) / name for tool in tools for name in tool.binaries()})


def build_command(tool: Tool, package: str, output: Path) -> list[str]:
    """The compiler's command line for one binary of a tool."""
    ldflags = f"-s -w {tool.ldflags}".strip()
    return [
        "go",
        "build",
        "-v",
        "-mod=readonly",
        "-buildvcs=false",
        "-trimpath",
        "-ldflags",
        ldflags,
        "-o",
        str(output),
        package,
    ]


def run_compiler(command: list[str], tool: Tool) -> None:
    """Run one compile and count packages aloud, because the largest takes ten minutes.

    Raises:
        ClusterError: it failed; the end of its output is in the text.
    """
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    tail: deque[str] = deque(maxlen=40)
    with subprocess.Popen(
        command, cwd=tool.module, env=environment, stderr=subprocess.PIPE, text=True, umask=host.UMASK
    ) as compiler:
        for number, line in enumerate(compiler.stderr or (), start=1):
            tail.append(line)
            if number % PACKAGES_PER_LINE == 0:
                say(f"    {tool.name}: {number} packages so far")
    if compiler.returncode:
        status = compiler.returncode
        raise ClusterError(f"{' '.join(command)} in {tool.module} failed with {status}:\n{''.join(tail)}")


def compile_tool(tool: Tool) -> Path:
    """Compile one tool into the cache and return its folder; a second caller waits for the first."""
    goal = target(tool)
    with host.locked(goal.parent / f".{tool.name}.lock"):
        if goal.is_dir():
            return goal
        work = Path(tempfile.mkdtemp(prefix=f".{tool.name}-", dir=goal.parent))
        try:
            work.chmod(0o755)
            for name, package in tool.packages.items():
                run_compiler(build_command(tool, package, work / name), tool)
                for link in tool.links.get(name, []):
                    (work / link).symlink_to(name)
            work.rename(goal)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return goal
