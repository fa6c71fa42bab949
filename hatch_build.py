"""Builds the runtime's C++ library along with the distribution, where that is possible.

`STOKER_NATIVE` says how much it matters: `auto` (the default) builds it on x86-64 Linux with a C++ compiler
and goes without it elsewhere, `require` makes a missing compiler an error there, `off` builds none.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOM = Path("runtime/stoker_runtime/model/native")
LIBRARY = "libstoker_cpu.so"
FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
    # The headers of some GCC versions hand out undefined vectors on purpose, and warn of them.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
# Source, object, flags of its own: what asks the CPU runs everywhere, a variant where its instructions exist.
BF16 = ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-DSTOKER_BF16")
UNITS = (
    ("library.cpp", "library.o", ()),
    ("pool.cpp", "pool.o", ()),
    ("pick.cpp", "pick.o", ("-march=x86-64-v4",)),
    ("step.cpp", "f32.o", ("-march=x86-64-v4",)),
    ("step.cpp", "bf16.o", BF16),
    ("integer_pack.cpp", "integer_pack.o", BF16),
    ("dequantize.cpp", "dequantize.o", ("-march=x86-64-v4", "-ffp-contract=off")),
)


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles the library into the package folder and tags a wheel that holds it for this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build before hatchling collects the files; version is "standard" or "editable"."""
        room = Path(self.root) / ROOM
        compiler = self._compiler(room)
        if self.target_name != "wheel" or compiler is None:
            return
        build(compiler, room)
        build_data["artifacts"].append(str(ROOM / LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def _compiler(self, room: Path) -> list[str] | None:
        """Return the compiler's command; None where no library can or shall be built."""
        wanted = os.environ.get("STOKER_NATIVE", "auto")
        if wanted not in ("auto", "require", "off"):
            raise SystemExit(f"STOKER_NATIVE is {wanted!r}; use auto, require or off")
        if wanted == "off" or not room.is_dir():  # the operator's image has no runtime
            return None
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return None
        command = shlex.split(os.environ.get("CXX", "g++"))
        if shutil.which(command[0]) is not None:
            return command
        if wanted == "require":
            raise SystemExit(
                f"STOKER_NATIVE is require, but there is no C++ compiler {command[0]}: install g++"
            )
        self.app.display_warning(f"no C++ compiler {command[0]}: the runtime will compute with PyTorch alone")
        return None


def build(compiler: list[str], room: Path) -> None:
    """Compile the units side by side and link them.

    Raises:
        subprocess.CalledProcessError: the compiler failed; what it said is on standard error.
    """
    with TemporaryDirectory() as folder:
        objects = [str(Path(folder) / name) for _, name, _ in UNITS]
        running = [
            subprocess.Popen([*compiler, *FLAGS, *extra, "-c", str(room / "csrc" / source), "-o", target])
            for (source, _, extra), target in zip(UNITS, objects, strict=True)
        ]
        for process in running:
            if process.wait() != 0:
                raise subprocess.CalledProcessError(process.returncode, process.args)
        # A name of its own first: a process may have the old library loaded.
        linked = room / f".{LIBRARY}"
        subprocess.run([*compiler, "-shared", "-o", str(linked), *objects, "-pthread"], check=True)
        linked.replace(room / LIBRARY)
