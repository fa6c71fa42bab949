"""Writes checkpoints with quantized weights, each weight rounded to the nearest value that its group has.

This is not what GPTQ and AWQ do: they choose among roundings by what comes out on sample text, and lose less.
The files have their layouts, so they show that a layout is read rightly and what plain rounding costs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of eight that lies in each place of a word

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Gptq:
    """AutoGPTQ's layout.

    Args:
        bits: of a code, 4 or 8.
        group_size: inputs that share a scale; -1 for all.
        is_symmetric: the zero point is the middle of the codes.
        shuffle_seed: groups hold inputs from anywhere, as with desc_act; None for neighbours.
        form: gptq stores zero points less one, gptq_v2 as they are.
        has_biases: zeros for every module, as AutoGPTQ writes them.
    """

    bits: int = 4
    group_size: int = 128
    is_symmetric: bool = False
    shuffle_seed: int | None = None
    form: Literal["gptq", "gptq_v2"] = "gptq"
    has_biases: bool = False

    def config(self) -> dict[str, Any]:
        """The quantization_config of such a checkpoint."""
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": self.is_symmetric,
            "desc_act": self.shuffle_seed is not None,
            "checkpoint_format": self.form,
        }

    def module(self, weight: Tensor) -> Tensors:
        """Round one weight, [out, in]."""
        size = weight.shape[1] if self.group_size == -1 else self.group_size
        order = torch.arange(weight.shape[1])
        if self.shuffle_seed is not None:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(self.shuffle_seed))
        group_of_input = torch.empty(len(order), dtype=torch.int32)
        group_of_input[order] = torch.arange(len(order), dtype=torch.int32) // size
        codes, zeros, scales = rounded(weight[:, order], size, self.bits, self.is_symmetric)
        own_order = torch.empty_like(codes)
        own_order[:, order] = codes
        stored_zeros = zeros - 1 if self.form == "gptq" else zeros
        tensors = {
            "qweight": _packed(own_order.T.contiguous(), self.bits),
            "qzeros": _packed(stored_zeros & (2**self.bits - 1), self.bits).T.contiguous(),
            "scales": scales.T.half().contiguous(),
            "g_idx": group_of_input,
        }
        if self.has_biases:
            tensors["bias"] = torch.zeros(weight.shape[0], dtype=torch.float16)
        return tensors


@dataclass(frozen=True)
class Awq:
    """AutoAWQ's layout for its GEMM kernels."""

    group_size: int = 128

    def config(self) -> dict[str, Any]:
        """The quantization_config of such a checkpoint."""
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group_size,
            "zero_point": True,
            "version": "gemm",
        }

    def module(self, weight: Tensor) -> Tensors:
        """Round one weight, [out, in]."""
        size = weight.shape[1] if self.group_size == -1 else self.group_size
        codes, zeros, scales = rounded(weight, size, bits=4, is_symmetric=False)
        return {
            "qweight": _packed(_awq_interleaved(codes), 4).T.contiguous(),
            "qzeros": _packed(_awq_interleaved(zeros), 4).T.contiguous(),
            "scales": scales.T.half().contiguous(),
        }


@dataclass(frozen=True)
class Fp8:
    """float8_e4m3fn with scales: for all of a module's weights, for each output, or for blocks.

    Args:
        scales: what shares one.
        block: outputs and inputs of a block.
        is_compressed: named as compressed-tensors does, else as transformers' fine-grained fp8.
    """

    scales: Literal["tensor", "channel", "block"] = "channel"
    block: tuple[int, int] = (128, 128)
    is_compressed: bool = True

    def config(self) -> dict[str, Any]:
        """The quantization_config of such a checkpoint."""
        block = list(self.block) if self.scales == "block" else None
        if not self.is_compressed:
            fields = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
            return fields | {"weight_block_size": block}
        weights = {"num_bits": 8, "type": "float", "strategy": self.scales, "block_structure": block}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
        }

    def module(self, weight: Tensor) -> Tensors:
        """Round one weight, [out, in]."""
        outputs, inputs = {"tensor": weight.shape, "channel": (1, weight.shape[1]), "block": self.block}[
            self.scales
        ]
        blocks = [torch.split(rows, inputs, dim=1) for rows in torch.split(weight, outputs)]
        largest = torch.stack([torch.stack([block.abs().max() for block in row]) for row in blocks])
        scale = largest.clamp(min=1e-12) / FP8_MAX
        spread = scale.repeat_interleave(outputs, 0).repeat_interleave(inputs, 1)
        codes = weight / spread[: weight.shape[0], : weight.shape[1]]
        name = "weight_scale" if self.is_compressed or self.scales != "block" else "weight_scale_inv"
        stored = scale.flatten() if self.scales == "tensor" else scale
        return {"weight": codes.clamp(-FP8_MAX, FP8_MAX).to(FP8), name: stored.contiguous()}


Layout = Gptq | Awq | Fp8


def write_quantized(plain: Path, target: Path, layout: Layout) -> None:
    """Write a checkpoint anew with the weights of its layers' linear modules rounded.

    Args:
        plain: a folder with config.json and one safetensors file.
        target: the folder to make.
        layout: of the rounded weights.
    """
    config = json.loads((plain / "config.json").read_text())
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": layout.config()}))
    tensors: Tensors = {}
    for name, tensor in _tensors(plain):
        module = name.removesuffix(".weight")
        if ".layers." in name and name.endswith("_proj.weight"):
            made = layout.module(tensor.float()).items()
            tensors |= {f"{module}.{part}": values for part, values in made}
        else:
            tensors.setdefault(name, tensor)
    # A module's own bias replaces the zeros that a layout may have brought.
    tensors |= {name: tensor for name, tensor in _tensors(plain) if name.endswith(".bias")}
    save_file(tensors, target / "model.safetensors")


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    file: Any = safe_open(str(folder / "model.safetensors"), framework="pt")
    with file as opened:
        for name in sorted(opened.keys()):
            yield name, opened.get_tensor(name)


def rounded(weight: Tensor, group_size: int, bits: int, is_symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in], zero points and scales [out, groups]; weight = (code - zero point) * scale, about."""
    most = 2**bits - 1
    codes, zeros, scales = [], [], []
    for group in torch.split(weight, group_size, dim=1):
        low, high = group.amin(dim=1).clamp(max=0), group.amax(dim=1).clamp(min=0)
        if is_symmetric:
            high = torch.maximum(high, -low)
            low = -high
        scale = ((high - low) / most).clamp(min=1e-6).half().float()  # as it will be stored
        zero = torch.full_like(scale, (most + 1) / 2) if is_symmetric else torch.round(-low / scale)
        zero = zero.clamp(0, most)
        codes.append((torch.round(group / scale[:, None]) + zero[:, None]).clamp(0, most).int())
        zeros.append(zero.int())
        scales.append(scale)
    return torch.cat(codes, dim=1), torch.stack(zeros, dim=1), torch.stack(scales, dim=1)


def _packed(rows: Tensor, bits: int) -> Tensor:
    """[n, ...] -> [n * bits / 32, ...]: neighbours along the first axis share a word, the first lowest."""
    per_word = 32 // bits
    words = torch.zeros((rows.shape[0] // per_word, *rows.shape[1:]), dtype=torch.int64)
    for place in range(per_word):
        words |= rows[place::per_word].long() << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _awq_interleaved(rows: Tensor) -> Tensor:
    """[out, ...] with each eight neighbours along the first axis in the order that AWQ packs them."""
    eights = rows.view(-1, len(_AWQ_ORDER), *rows.shape[1:])
    return eights[:, list(_AWQ_ORDER)].flatten(0, 1)
