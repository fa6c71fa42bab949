"""The pins: which tools there are, where their Go module is and under which cache folder a build of it lives.

Reads versions.toml and the go/ folder beside it; nothing here writes or starts anything.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
STAGES = ("integration", "charts", "alerts", "registry", "e2e", "kind", "kind-node")


@dataclass(frozen=True)
class Tool:
    """One Go module and the binaries that come out of it.

    Attributes:
        require: the module path whose version is pinned; empty where all the code is our own.
        also: further module paths that end up in its binaries, and their versions.
        packages: binary name -> package to compile; the name is the last element of the package's path.
        links: binary name -> further names it is started by.
        stages: the stages that need it, a subset of STAGES.
        key: hash of everything that decides what the build yields, short hexadecimal.
        tags: build tags, those of all tools of its module at once.
    """

    name: str
    module: Path
    require: str
    version: str
    packages: Mapping[str, str]
    stages: tuple[str, ...]
    key: str
    ldflags: str = ""
    tags: tuple[str, ...] = ()
    also: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, list[str]] = field(default_factory=dict)

    def binaries(self) -> list[str]:
        """Every name under which something of this tool can be started."""
        return [*self.packages, *(name for names in self.links.values() for name in names)]


def cache_dir() -> Path:
    """Where builds and images are kept between runs: $XDG_CACHE_HOME/stoker, by default ~/.cache/stoker."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "stoker"


def content_key(parts: Mapping[str, bytes]) -> str:
    """Hash named contents into a short key; order does not matter, names and borders do."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(f"{len(name)}:{name}{len(parts[name])}:".encode())
        digest.update(parts[name])
    return digest.hexdigest()[:16]


def load_tools(root: Path = HERE) -> dict[str, Tool]:
    """Read the pins.

    Args:
        root: folder with versions.toml and go/.
    """
    table = tomllib.loads((root / "versions.toml").read_text())
    tools = {}
    for name, entry in table["tools"].items():
        module = root / "go" / entry["module"]
        sources = {
            str(path.relative_to(module)): path.read_bytes()
            for path in sorted(module.rglob("*"))
            if path.is_file() and belongs(path.relative_to(module), entry["packages"].values())
        }
        recipe = repr(sorted(entry.items())).encode()
        tools[name] = Tool(
            name=name,
            module=module,
            require=entry.get("require", ""),
            version=entry.get("version", "own"),
            packages=entry["packages"],
            stages=tuple(entry["stages"]),
            key=content_key({**sources, "//recipe": recipe, "//machine": platform.machine().encode()}),
            ldflags=entry.get("ldflags", ""),
            tags=tuple(entry.get("tags", ())),
            also=entry.get("also", {}),
            links=entry.get("links", {}),
        )
    return tools


def belongs(file: Path, packages: Iterable[str]) -> bool:
    """Whether a file of a module, by its path in there, is part of what these packages are compiled from.

    The module's own files are part of everything, and a folder is part of the package in it.
    """
    return file.parent == Path() or f"./{file.parent}" in packages


def tools_of(stage: str, tools: Mapping[str, Tool]) -> list[Tool]:
    """The tools that a stage needs, in the order of versions.toml."""
    return [tool for tool in tools.values() if stage in tool.stages]
