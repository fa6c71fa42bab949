"""Compiles the Triton kernels for a CUDA device that is not there.

`compile_kernels.py CAPABILITY DTYPE HEAD_DIM...`, as in `compile_kernels.py 90 bfloat16 64 128`.

The launching functions run on CPU tensors of real shapes, with a driver that only says what it would be; each
launch compiles the kernel down to machine code, with the very constants and options it would have. One JSON
object per kernel goes to standard output: its name, its shared memory and what each thread spills, in bytes,
and which of a device's special instructions it uses.

`compile_kernels.py variants CAPABILITY` launches what steps launch with several numbers of rows, and says per
launch how many different sets of kernels those need: more than one would be compiled by somebody's request.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from stoker_runtime.model.cuda.activation import gate_and_multiply
from stoker_runtime.model.cuda.chunk_attention import ChunkWork, attend_chunks
from stoker_runtime.model.cuda.decode_attention import (
    DecodeWork,
    attend_decodes,
    make_partials,
)
from stoker_runtime.model.cuda.experts import answer
from stoker_runtime.model.cuda.feed import feed
from stoker_runtime.model.cuda.fp8_linear import round_rows
from stoker_runtime.model.cuda.launches import Launches, chunk_candidates, decode_candidates
from stoker_runtime.model.cuda.norms import add_and_norm
from stoker_runtime.model.cuda.pick import NUM_SETTINGS, pick
from stoker_runtime.model.cuda.quantized_linear import dequantized, multiply
from stoker_runtime.model.cuda.rotate import Rotation, rotate_and_store
from stoker_runtime.model.cuda.shapes import Heads, Scoring
from stoker_runtime.model.cuda.store_blocks import store_blocks
from stoker_runtime.model.linear import Linear
from stoker_runtime.model.mlp import Experts, Mlp
from stoker_runtime.model.quantized.stack import QuantizedStack
from stoker_runtime.model.quantized.weight import Fp8Weight, IntWeight

_HIDDEN, _INTERMEDIATE = 4096, 14336
_TOKENS = 32
_EXPERTS = 4
_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class AbsentDevice:
    """As much of a driver as the compiler asks."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def compile_instead_of_launching() -> list[Any]:
    """Make launches compile; returns the list that the compiled kernels are put into."""
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    JITFunction.run = compile_only
    return compiled


def spilled_bytes(kernel: Any) -> int:
    """What each thread keeps in memory for lack of registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    return max(int(word.removeprefix("STACK:")) for word in usage.stdout.split() if word.startswith("STACK:"))


def launch_all(dtype: torch.dtype, heads: Heads) -> None:
    """Launch every kernel once with one model's shapes."""

    def numbers(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype)

    def integers(count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32)

    size = heads.num_heads * heads.head_dim
    cache = tuple(numbers(64, heads.num_kv_heads, heads.head_dim) for _ in range(2))
    query, out = numbers(_TOKENS, size), numbers(_TOKENS, size)
    qkv = numbers(_TOKENS, size + 2 * heads.num_kv_heads * heads.head_dim)
    small_cache = tuple(part.to(torch.float8_e4m3fn) for part in cache)
    norm_weight = numbers(heads.num_heads + heads.num_kv_heads, heads.head_dim)
    tables = [numbers(64, heads.head_dim) for _ in range(2)]
    for weight in (None, norm_weight, norm_weight.float()):
        rotation = Rotation(tables[0], tables[1], weight, norms_projections=False)
        for keys, values in (cache, small_cache):
            rotate_and_store(
                qkv, rotation, integers(_TOKENS), integers(_TOKENS), (keys, values), heads, 1e-5, query
            )
    scoring = Scoring(0.1)
    decodes = DecodeWork(
        integers(_TOKENS), integers(_TOKENS + 1), integers(64), integers(_TOKENS), integers(64), _TOKENS
    )
    partials = make_partials(64, heads, query.device)
    chunks = ChunkWork(*(integers(16) for _ in range(7)))
    for keys, values in (cache, small_cache):
        for decode_launch in decode_candidates(132).values():
            attend_decodes(query, (keys, values), 16, decodes, partials, heads, scoring, out, decode_launch)
        for launch in chunk_candidates(heads, dtype).values():
            attend_chunks(query, (keys, values), 16, chunks, heads, scoring, out, launch)
    hidden, weight = numbers(_TOKENS, _HIDDEN), numbers(_HIDDEN)
    for scale in (weight, weight.float()):
        add_and_norm(hidden, hidden, None, scale, 1e-5, 1.0, hidden)
    pick(torch.zeros(4, 128256), torch.zeros(4, NUM_SETTINGS, dtype=torch.float64))
    feed(integers(_TOKENS), integers(_TOKENS))
    store_blocks(integers(64), integers(64), 32)
    multiply_quantized(hidden)
    gate_and_multiply(numbers(_TOKENS, 2 * _INTERMEDIATE), "silu", numbers(_TOKENS, _INTERMEDIATE))


def multiply_quantized(hidden: torch.Tensor) -> None:
    """Launch the kernels over quantized weights, with few rows and many."""
    scales = torch.zeros(_HIDDEN // 128, _HIDDEN)
    words, zeros = torch.zeros(_HIDDEN // 8, _HIDDEN, dtype=torch.int32), scales.to(torch.uint8)
    codes = torch.zeros(_HIDDEN, _HIDDEN, dtype=torch.uint8).view(torch.float8_e4m3fn)
    for weight in (
        IntWeight(words, zeros, scales.half(), 4, 128, None),
        IntWeight(words.repeat(2, 1), zeros, scales.half(), 8, 128, None),
        Fp8Weight(codes, scales[:1], _HIDDEN, rounds_inputs=False),
    ):
        for num_rows in (1, 64):
            for parts in (1, 2):
                multiply(hidden[:1].expand(num_rows, -1).contiguous(), weight, 64, parts)
        dequantized(weight, hidden.dtype)
    round_rows(hidden)


def launch_mixtures(dtype: torch.dtype) -> None:
    """Launch the mixtures' kernels once for each size of a tile, at sizes that fill tiles and that do not."""
    for num_rows, size in itertools.product((4, 64, 128, 256), (768, 1008)):
        gate_up = torch.zeros(_EXPERTS, 2 * size, 2048, dtype=dtype)
        down = torch.zeros(_EXPERTS, 2048, size, dtype=dtype)
        experts = (Mlp(Linear(one), Linear(two), "silu") for one, two in zip(gate_up, down, strict=True))
        mixture = Experts(gate_up[:, 0], tuple(experts), 2, True, (gate_up, down))
        rows, scores = torch.zeros(num_rows, 2048, dtype=dtype), torch.zeros(num_rows, _EXPERTS, dtype=dtype)
        slots = torch.zeros(num_rows, dtype=torch.int32)
        answer(mixture, rows, scores, slots)
        for stacks in quantized_stacks(size):
            answer(replace(mixture, stacks=stacks), rows, scores, slots)


def quantized_stacks(size: int) -> Iterator[tuple[QuantizedStack, QuantizedStack]]:
    """Weights of experts with 4 bits, sorted by group and not, with 8 bits, and in fp8."""
    for bits, is_ordered in ((4, False), (4, True), (8, False), (0, False)):
        made = []
        for num_outputs, num_inputs in ((2 * size, 2048), (2048, size)):
            groups = (_EXPERTS, -(-num_inputs // 128) if bits else 1, num_outputs)
            codes = torch.zeros(_EXPERTS, num_inputs * bits // 32, num_outputs, dtype=torch.int32)
            if not bits:
                codes = torch.zeros(_EXPERTS, num_outputs, num_inputs, dtype=torch.uint8)
            zeros = torch.zeros(groups, dtype=torch.uint8) if bits else None
            scales = torch.zeros(groups, dtype=torch.float16 if bits else torch.float32)
            order = torch.zeros(_EXPERTS, num_inputs, dtype=torch.int64) if is_ordered else None
            made.append(QuantizedStack(codes, zeros, scales, order, bits, 128 if bits else num_inputs))
        yield made[0], made[1]


def launches_by_rows(dtype: torch.dtype) -> dict[str, Callable[[int], object]]:
    """What steps launch, by number of rows; a launch's other sizes are a model's."""
    heads, scoring = Heads(8, 2, 64), Scoring(0.1)
    launches = Launches.default(heads, dtype, torch.device("cpu"))
    cache = (torch.zeros(64, 2, 64, dtype=dtype), torch.zeros(64, 2, 64, dtype=dtype))
    gate_up, down = torch.zeros(_EXPERTS, 128, 64, dtype=dtype), torch.zeros(_EXPERTS, 64, 64, dtype=dtype)
    experts = (Mlp(Linear(one), Linear(two), "silu") for one, two in zip(gate_up, down, strict=True))
    mixture = Experts(gate_up[:, 0], tuple(experts), 2, True, (gate_up, down))
    codes = torch.zeros(128, 128, dtype=torch.uint8).view(torch.float8_e4m3fn)
    weight = Fp8Weight(codes, torch.zeros(1, 128), 128, rounds_inputs=False)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype)

    def integers(count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32)

    def decode(rows: int) -> None:
        items, blocks = integers(2 * rows), integers(64)
        work = DecodeWork(integers(rows), integers(rows + 1), items, integers(rows), blocks, rows)
        query, partials = numbers(rows, 512), make_partials(2 * rows, heads, torch.device("cpu"))
        attend_decodes(query, cache, 16, work, partials, heads, scoring, numbers(rows, 512), launches.decodes)

    def chunk(rows: int) -> None:
        work = ChunkWork(*(integers(rows) for _ in range(7)))
        attend_chunks(
            numbers(rows, 512), cache, 16, work, heads, scoring, numbers(rows, 512), launches.chunks
        )

    return {
        "feed": lambda rows: feed(integers(rows), integers(64)),
        "store_blocks": lambda rows: store_blocks(integers(64), integers(2 * rows), rows),
        "decode": decode,
        "chunk": chunk,
        "mixture": lambda rows: answer(mixture, numbers(rows, 64), numbers(rows, _EXPERTS), integers(rows)),
        "product": lambda rows: multiply(numbers(rows, 128), weight, 64),
        "parts of a product": lambda rows: multiply(numbers(rows, 128), weight, 64, 2),
    }


def print_variants(compiled: list[Any]) -> None:
    """Launch everything with numbers of rows that are one, odd, and multiples of 4 and of 16."""
    for name, launch in launches_by_rows(torch.bfloat16).items():
        found = set()
        for rows in (1, 2, 3, 4, 5, 11, 16):
            compiled.clear()
            launch(rows)
            found.add(frozenset(kernel.hash for kernel in compiled))
        print(json.dumps({"launch": name, "kernels": len(compiled), "variants": len(found)}), flush=True)


def main() -> None:
    """Compile everything for the device that the arguments name."""
    if sys.argv[1] == "variants":
        driver.set_active(AbsentDevice(int(sys.argv[2])))
        print_variants(compile_instead_of_launching())
        return
    capability, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
    driver.set_active(AbsentDevice(capability))
    compiled = compile_instead_of_launching()
    for head_dim in (int(size) for size in sys.argv[3:]):
        launch_all(dtype, Heads(32, 8, head_dim))
    launch_mixtures(dtype)
    for kernel in compiled:
        report = {
            "name": kernel.name,
            "shared": kernel.metadata.shared,
            "spilled": spilled_bytes(kernel),
            "instructions": [name for name in ("cp.async", "wgmma", "mma.sync") if name in kernel.asm["ptx"]],
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
