"""How each engine is started, with the settings that suit it on a small CPU machine."""

from __future__ import annotations

import os
from pathlib import Path

from loadgen.process import NAME, Program, stoker
from rivals.convert import huggingface_folder
from rivals.install import bfloat16_gguf, install_llama_cpp, install_vllm

MAX_MODEL_LEN = 4608  # the longest request of the workloads and some room
MAX_NUM_SEQS = 32


def stoker_program(model: Path) -> Program:
    """Return this project's runtime as it starts by itself."""
    return stoker(model, ("--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_NUM_SEQS)))


def llama_cpp_program(folder: Path, model: Path) -> Program:
    """Return llama.cpp's server: bfloat16 weights, all cores, a slot for each request that may run."""
    programs = install_llama_cpp(folder)
    flags = ("--threads", str(os.cpu_count() or 1), "--parallel", str(MAX_NUM_SEQS))
    context = ("--ctx-size", str(MAX_NUM_SEQS * MAX_MODEL_LEN))
    where = ("--host", "127.0.0.1", "--port", "{port}", "--alias", NAME, "--no-webui")
    file = bfloat16_gguf(folder, programs, model)
    command = (str(programs / "llama-server"), "--model", str(file), *flags, *context, *where)
    return Program("llama-server", command, "/health", stopped_status=(0, -15))


def vllm_program(folder: Path, model: Path, wheels: str | None) -> Program:
    """Return vLLM for CPUs: compiled, with its own choice of threads, which is its fastest on 2 cores."""
    programs = install_vllm(folder, wheels)
    flags = (
        "--dtype",
        "bfloat16",
        "--max-model-len",
        str(MAX_MODEL_LEN),
        "--max-num-seqs",
        str(MAX_NUM_SEQS),
    )
    where = ("--host", "127.0.0.1", "--port", "{port}", "--served-model-name", NAME)
    command = (str(programs / "vllm"), "serve", str(huggingface_folder(folder, model)), *flags, *where)
    env = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "LD_PRELOAD": str(programs.parent / "lib" / "libiomp5.so"),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    return Program("vllm", command, "/health", env, stopped_status=(0, -15, 143))
