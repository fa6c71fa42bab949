"""Matrix products with the model's weights, packed for oneDNN where that is possible and right.

Packing reorders a weight once into the blocks that oneDNN's kernels read, which makes a CPU step 1.3 to 2
times faster. The two operators behind it are private to torch, so they are used only after a check that they
exist and agree with the plain product on this machine.

A row's product must not depend on the rows beside it, not in the last bit: the same request would get another
text in another batch. Libraries choose kernels by the number of rows, and not all of them add up in the same
order, so each product is tried when it is loaded, see EvenProducts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

_BATCH_HINT = 16  # packed for this many rows; the layout serves every number of rows equally well
_TILE = 8  # rows; with a multiple of it MKL adds up every row in the same order, in any number of threads
_NUM_TRIED = 40
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


class Product(Protocol):
    """x @ weight.T + bias, whatever form the weight is in: [T, in] -> [T, out]."""

    def __call__(self, rows: Tensor, /) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ weight.T + bias.

    Shapes:
        weight [out, in], bias [out]; call: [T, in] -> [T, out]
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows @ weight.T + bias."""
        return F.linear(rows, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """The same, over a weight that only oneDNN's kernels understand."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows @ weight.T + bias."""
        return _packed_product(rows, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class TiledProduct:
    """A product whose number of rows is made a multiple of the tile's, or that is computed tile by tile."""

    product: Product
    one_by_one: bool

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the product's rows."""
        return tiled(self.product, rows, self.one_by_one)


def tiled(product: Product, rows: Tensor, one_by_one: bool = False) -> Tensor:
    """Multiply with zeros below the rows, so that the number of rows is a multiple: [T, in] -> [T, out]."""
    num_rows = rows.shape[0]
    rows = F.pad(rows, (0, 0, 0, -num_rows % _TILE))
    found = torch.cat([product(tile) for tile in torch.split(rows, _TILE)]) if one_by_one else product(rows)
    return found[:num_rows]


class EvenProducts:
    """Makes a row of each product the same to the last bit whatever rows are beside it, on a CPU.

    Each shape is tried once: the product as it is, then with padded rows, then in tiles.
    """

    def __init__(self) -> None:
        self._ways: dict[tuple[type, torch.Size, torch.dtype], Callable[[Product], Product]] = {}

    def __call__(self, product: Product) -> Product:
        """Return the product, or one of the same weight that is even."""
        if not isinstance(product, Linear | PackedLinear) or product.weight.device.type != "cpu":
            return product
        weight = product.weight
        key = (type(product), weight.shape, weight.dtype)
        if key not in self._ways:
            self._ways[key] = _even_way(product, weight)
        return self._ways[key](product)


def _even_way(product: Product, weight: Tensor) -> Callable[[Product], Product]:
    ways: tuple[Callable[[Product], Product], ...] = (
        lambda product: product,
        lambda product: TiledProduct(product, one_by_one=False),
        lambda product: TiledProduct(product, one_by_one=True),
    )
    for way in ways:
        if is_even(way(product), weight.shape[1], weight.dtype):
            return way
    logger.warning(
        "products of %d x %d depend on the batch on this CPU: a request's text may differ in another batch",
        *weight.shape,
    )
    return ways[0]


def is_even(product: Product, num_inputs: int, dtype: torch.dtype) -> bool:
    """Tell whether rows get the same bits alone, in other numbers and at other places."""
    rows = torch.randn(_NUM_TRIED, num_inputs, generator=torch.Generator().manual_seed(0)).to(dtype)
    together = product(rows)
    spans = (slice(0, 1), slice(30, 33), slice(5, 13), slice(27, _NUM_TRIED))
    return all(torch.equal(product(rows[span].clone()), together[span]) for span in spans)


def packed(linear: Product) -> Product:
    """Return the product with its weight packed, where that works."""
    if not isinstance(linear, Linear) or linear.weight.device.type != "cpu":
        return linear
    if not packing_works(linear.weight.dtype):
        return linear
    return PackedLinear(_pack(linear.weight), linear.bias)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _BATCH_HINT)
    return packed


def _packed_product(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Tell whether packed products exist here for this dtype and agree with plain ones."""
    tolerance = _TOLERANCE[dtype]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 40, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    try:
        packed = _pack(weight)
        works = all(
            torch.allclose(
                _packed_product(rows, packed, bias).float(),
                F.linear(rows, weight, bias).float(),
                rtol=tolerance,
                atol=tolerance * 10,
            )
            for rows in (torch.randn(n, 40, generator=generator).to(dtype) for n in (1, 3, 16))
        )
    except (AttributeError, RuntimeError, TypeError) as error:
        # not in this build of torch, or not for this dtype on this CPU: the plain product is always right
        logger.info("weights stay unpacked, which makes steps slower: %s", error)
        return False
    if not works:
        logger.warning("packed %s products are wrong on this CPU: weights stay unpacked", dtype)
    return works
