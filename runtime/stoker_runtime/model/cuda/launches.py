"""How a model's attention is launched: what a measurement may choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stoker_runtime.model.cuda.chunk_attention import ChunkLaunch
from stoker_runtime.model.cuda.decode_attention import DecodeLaunch
from stoker_runtime.model.cuda.shapes import Heads

# Programs per processor and stages of the decodes' attention. The first is the default: what registers and
# shared memory admit at once, by arithmetic.
_DECODES = ((4, 3), (2, 3), (6, 3), (8, 3), (4, 2), (8, 2))
_SMALL_HEAD = 64  # a tile of larger ones does not fit the registers of fewer warps
_INTERPRETED_PROCESSORS = 1


@dataclass(frozen=True, slots=True)
class Launches:
    """Of all steps, recorded or not.

    Args:
        decodes: of requests that compute one token.
        chunks: of the others.
        has_sdpa: PyTorch's operator attends for long chunks of steps that are not recorded.
    """

    decodes: DecodeLaunch
    chunks: ChunkLaunch
    has_sdpa: bool = False

    @classmethod
    def default(cls, heads: Heads, dtype: torch.dtype, device: torch.device) -> Launches:
        """Return what is launched where nothing was measured."""
        decodes = next(iter(decode_candidates(num_processors(device)).values()))
        return cls(decodes, ChunkLaunch.default(heads, dtype))


def decode_candidates(processors: int) -> dict[str, DecodeLaunch]:
    """Return what may be faster on a device with so many processors, by name, the default first."""
    return {
        f"{programs} programs per processor and {stages} stages": DecodeLaunch(programs * processors, stages)
        for programs, stages in _DECODES
    }


def chunk_candidates(heads: Heads, dtype: torch.dtype) -> dict[str, ChunkLaunch]:
    """Return what may be faster for such heads, by name, the default first."""
    default = ChunkLaunch.default(heads, dtype)
    warps = [default.num_warps]
    if heads.head_dim <= _SMALL_HEAD:
        warps.append(4 if default.num_warps == 8 else 8)
    launches = [ChunkLaunch(count, stages) for count in warps for stages in (2, 3)]
    return {f"{launch.num_warps} warps and {launch.num_stages} stages": launch for launch in launches}


def num_processors(device: torch.device) -> int:
    """Return the streaming multiprocessors of a device; a few programs are enough to interpret."""
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
