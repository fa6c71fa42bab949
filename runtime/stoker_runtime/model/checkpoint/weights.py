"""Where weights come from: safetensors files or a GGUF file, behind one small interface.

A source copies one named tensor straight into the place the decoder made for it, converting on the way, so
no second copy of the model ever exists. Names are Hugging Face's, for both kinds. No pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import GgufFile, GgufTensor
from stoker_runtime.lfs import unreadable
from stoker_runtime.model.architecture import Architecture
from stoker_runtime.model.checkpoint.blocks import KEPT_TYPES, BlockTensor
from stoker_runtime.model.checkpoint.dequantize import BlockFormat, block_format, type_name
from stoker_runtime.model.checkpoint.gguf_names import INTERLEAVED, hugging_face_tensors
from stoker_runtime.weight_formats import advice

ReadBlocks = Callable[[int, Tensor, Tensor], bool]
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_HEADLESS_PREFIXES = ("embed_tokens.", "layers.", "norm.")
_CHUNK_VALUES = 1 << 22  # dequantized at a time, so that the float32 copy stays small
_SERIAL_CHUNK_VALUES = 1 << 18  # by each of the threads, where one core does it: its copies then fit a cache


class WeightSource(Protocol):
    """Tensors by Hugging Face name. A context manager: files are open only while weights load."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def names(self) -> frozenset[str]:
        """Every tensor in the files."""
        ...

    def copy_into(self, name: str, destination: Tensor) -> None:
        """Copy a tensor, converted to the destination's dtype and device.

        Raises:
            ModelError: no such tensor, another shape than the destination's, or a type that cannot be read.
        """
        ...


def _check_shape(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise ModelError(f"tensor {name} has shape {list(shape)}, the configuration makes it {list(wanted)}")


def _whole_models_name(name: str) -> str:
    """Return the name in the whole model of a tensor that was saved with a model without its head."""
    return f"model.{name}" if name.startswith(_HEADLESS_PREFIXES) else name


class SafetensorsSource:
    """model.safetensors, the shards that model.safetensors.index.json names, or the only safetensors file.

    Args:
        directory: where they are.
        rename: gives the name under which a stored tensor is known here, None for one that is left out.
            Without it, names are those of a whole model, also where the file is one without its head.
    """

    def __init__(self, directory: Path, rename: Callable[[str], str | None] | None = None) -> None:
        self._directory = directory
        self._rename = rename or _whole_models_name
        self._files = ExitStack()
        self._places: dict[str, tuple[Any, str]] = {}  # shard and stored name

    def __enter__(self) -> Self:
        for file in self._shards():
            try:
                # The library's type stubs do not declare safe_open a context manager with these methods.
                shard: Any = self._files.enter_context(safe_open(str(file), framework="pt", device="cpu"))
            except FileNotFoundError as error:
                raise ModelError(
                    f"{file} is missing, though the index names it; download it as well"
                ) from error
            except (OSError, SafetensorError) as error:
                raise ModelError(unreadable(file, error)) from error
            self._add(file, shard)
        return self

    def _add(self, file: Path, shard: Any) -> None:
        for stored in shard.keys():  # noqa: SIM118, a shard is no mapping
            name = self._rename(stored)
            if name is None:
                continue
            if name in self._places:
                raise ModelError(
                    f"{self._directory} has two tensors for {name}, the second is {stored} in {file.name}"
                )
            self._places[name] = shard, stored

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._places.clear()
        self._files.close()

    def _shards(self) -> list[Path]:
        # As in transformers. Beside it there may be an index that was left over, or the weights once more.
        whole = self._directory / "model.safetensors"
        if whole.exists():
            return [whole]
        index = self._directory / "model.safetensors.index.json"
        if not index.exists():
            found = sorted(self._directory.glob("*.safetensors"))
            if len(found) == 1:
                return found
            if found:
                raise ModelError(
                    f"{self._directory} has {len(found)} safetensors files and no {index.name}; download it "
                    "as well"
                )
            what_to_do = advice([file.name for file in self._directory.iterdir()])
            raise ModelError(
                f"{self._directory} has no .safetensors file: {what_to_do or 'the weights are missing'}",
                reason="UnsupportedModel" if what_to_do else "InvalidModel",
            )
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            outside = [name for name in names if Path(name).name != name]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index} cannot be read: {error!r}") from error
        if outside:
            raise ModelError(f"{index} names a file outside its directory: {outside[0]}")
        return [self._directory / name for name in names]

    @property
    def names(self) -> frozenset[str]:
        """Every tensor in the files."""
        return frozenset(self._places)

    def copy_into(self, name: str, destination: Tensor) -> None:
        """See WeightSource.copy_into."""
        tensor = self.read(name)
        _check_shape(name, tuple(tensor.shape), tuple(destination.shape))
        if tensor.dtype not in _FLOATS:
            raise ModelError(
                f"tensor {name} is {tensor.dtype}, which is not supported: its weights are quantized in a "
                "way that config.json does not say; use the original checkpoint",
                reason="UnsupportedModel",
            )
        destination.copy_(tensor)

    def read(self, name: str) -> Tensor:
        """Return a tensor as it is stored.

        Raises:
            ModelError: no such tensor.
        """
        if name not in self._places:
            raise ModelError(f"tensor {name} is missing from {self._directory}")
        shard, stored = self._places[name]
        tensor: Tensor = shard.get_tensor(stored)
        return tensor

    def is_fp8(self, name: str) -> bool:
        """Tell whether a tensor is stored in float8_e4m3fn, without reading it."""
        shard, stored = self._places[name]
        return bool(shard.get_slice(stored).get_dtype() == "F8_E4M3")


class GgufSource:
    """The tensors of a GGUF model, dequantized as they are copied.

    Args:
        gguf: the file's header.
        architecture: of its model.
        read_blocks: dequantizes blocks of a GGML type into a tensor of any dtype, or returns False; then, and
            without it, PyTorch's operators do.
    """

    def __init__(
        self, gguf: GgufFile, architecture: Architecture, read_blocks: ReadBlocks | None = None
    ) -> None:
        self._gguf = gguf
        self._read_blocks = read_blocks
        self._tensors = hugging_face_tensors(gguf, architecture)
        self._interleaved_heads = (
            {"q_proj": architecture.num_heads, "k_proj": architecture.num_kv_heads}
            if architecture.name in INTERLEAVED
            else {}
        )
        self._parts: list[Tensor] = []  # bytes of the model's files

    def __enter__(self) -> Self:
        self._parts = [
            torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
            for path in self._gguf.paths
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts = []

    @property
    def names(self) -> frozenset[str]:
        """Every tensor in the file."""
        return frozenset(self._tensors)

    @property
    def has_blocks(self) -> bool:
        """Whether any tensor is of KEPT_TYPES."""
        return any(tensor.type_id in KEPT_TYPES for tensor in self._tensors.values())

    def blocks(self, name: str, shape: tuple[int, int]) -> BlockTensor | None:
        """Return a matrix as it is stored; None where that is no blocks, or nothing here reads them.

        Its bytes are the file's, mapped into memory: they count as used only once they are read.

        Raises:
            ModelError: no such tensor, another shape, or the file is cut short.
        """
        tensor = self._find(name, shape)
        form = block_format(tensor.type_id)
        if form is None or form.num_values == 1:
            return None
        stored = self._stored(tensor, form).view(shape[0], -1)
        return BlockTensor(tensor.type_id, self._halves_apart(name, stored))

    def copy_into(self, name: str, destination: Tensor) -> None:
        """See WeightSource.copy_into."""
        tensor = self._find(name, tuple(destination.shape))
        form = block_format(tensor.type_id)
        if form is None:
            raise ModelError(
                f"tensor {tensor.name} is {type_name(tensor.type_id)}, which nothing here can read; convert "
                "the file with llama.cpp's `llama-quantize --allow-requantize IN.gguf OUT.gguf Q8_0`, or the "
                "original model with its convert_hf_to_gguf.py",
                reason="UnsupportedModel",
            )
        if self._num_interleaved(name) == 0:
            self._dequantize(tensor, form, destination)
            return
        target = torch.empty(destination.shape, dtype=destination.dtype)
        self._dequantize(tensor, form, target)
        destination.copy_(self._halves_apart(name, target))

    def _find(self, name: str, shape: tuple[int, ...]) -> GgufTensor:
        if name not in self._tensors:
            raise ModelError(f"tensor {name} is missing from {self._gguf.path}")
        tensor = self._tensors[name]
        _check_shape(name, tensor.shape, shape)
        return tensor

    def _num_interleaved(self, name: str) -> int:
        """Heads in whose rows the halves of rotary pairs alternate; 0 where they do not."""
        parts = name.split(".")
        return self._interleaved_heads.get(parts[-2], 0) if len(parts) > 1 else 0

    def _halves_apart(self, name: str, rows: Tensor) -> Tensor:
        """Return rows of values or of blocks with the halves of each head one behind the other."""
        num_heads = self._num_interleaved(name)
        if num_heads == 0:
            return rows
        count, *rest = rows.shape
        paired = rows.view(num_heads, count // num_heads // 2, 2, *rest).transpose(1, 2)
        return paired.reshape(rows.shape)

    def _stored(self, tensor: GgufTensor, form: BlockFormat) -> Tensor:
        """Return a tensor's bytes."""
        if tensor.shape[-1] % form.num_values:
            raise ModelError(
                f"tensor {tensor.name}: {tensor.shape[-1]} columns do not fill blocks of {form.num_values}"
            )
        num_bytes = math.prod(tensor.shape) // form.num_values * form.num_bytes
        stored = self._parts[tensor.part][tensor.offset : tensor.offset + num_bytes]
        if stored.numel() != num_bytes:
            path = self._gguf.paths[tensor.part]
            raise ModelError(
                f"{path} is cut short: tensor {tensor.name} ends beyond the file; download it anew"
            )
        return stored

    def _dequantize(self, tensor: GgufTensor, form: BlockFormat, target: Tensor) -> None:
        stored = self._stored(tensor, form)
        if self._read_blocks is not None and self._read_blocks(tensor.type_id, stored, target):
            return
        if tensor.offset % 8:  # a file with an alignment of its own; float views need aligned bytes
            stored = stored.clone()
        rows = target.view(-1, target.shape[-1])
        raw = stored.view(rows.shape[0], -1)
        step = max(1, (_SERIAL_CHUNK_VALUES if form.is_serial else _CHUNK_VALUES) // rows.shape[1])

        def decode(first: int) -> None:
            part = rows[first : first + step]
            blocks = raw[first : first + step].reshape(-1, form.num_bytes)
            part.copy_(form.decode(blocks).view(part.shape))

        starts = range(0, rows.shape[0], step)
        if not form.is_serial:
            for first in starts:
                decode(first)
            return
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            for _ in threads.map(decode, starts):
                pass
