"""The kernels compile for devices that nobody here has, into machine code that fits them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "compile_kernels.py"
# of one block, in bytes; an RTX 4090 or an L4 (8.9) has the least of all cards that compute in bfloat16
SHARED_MEMORY = 101376


def compiled(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.mark.long
@pytest.mark.parametrize(("capability", "product"), [("80", "mma.sync"), ("90", "wgmma")])
def test_kernels_compile_into_what_fits_the_device(tmp_path: Path, capability: str, product: str) -> None:
    kernels = compiled(tmp_path, capability, "bfloat16", "128")
    assert {kernel["name"] for kernel in kernels} == {
        "_activation_kernel",
        "_add_answers_kernel",
        "_add_norm_kernel",
        "_add_parts_kernel",
        "_chunks_kernel",
        "_combine_kernel",
        "_feed_kernel",
        "_dequantize_kernel",
        "_experts_kernel",
        "_group_kernel",
        "_pick_kernel",
        "_product_kernel",
        "_quantized_experts_kernel",
        "_rotate_kernel",
        "_round_rows_kernel",
        "_route_kernel",
        "_splits_kernel",
        "_store_blocks_kernel",
    }
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY, kernel
        assert kernel["spilled"] == 0, kernel
        if kernel["name"] in ("_splits_kernel", "_chunks_kernel", "_experts_kernel"):
            # caches and experts are read ahead, and tensor cores multiply
            assert "cp.async" in kernel["instructions"], kernel
        if kernel["name"] == "_chunks_kernel":
            assert product in kernel["instructions"], kernel


@pytest.mark.long
def test_kernels_compile_for_the_smallest_and_the_largest_heads(tmp_path: Path) -> None:
    for kernel in compiled(tmp_path, "90", "bfloat16", "64", "256"):
        assert kernel["shared"] <= SHARED_MEMORY, kernel
        assert kernel["spilled"] == 0, kernel


def test_no_number_of_rows_compiles_a_kernel_anew(tmp_path: Path) -> None:
    """Triton makes constants of integers that are 1 and facts of those and of pointers that 16 divides."""
    launches = compiled(tmp_path, "variants", "90")
    assert {launch["launch"] for launch in launches} >= {"feed", "store_blocks", "decode", "chunk", "mixture"}
    for launch in launches:
        assert launch["kernels"] > 0, launch
        assert launch["variants"] == 1, launch
