"""The MLP of a layer: one for all tokens, or experts of which a router picks some for each token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.model.linear import Linear, Product, tiled

_ONE_THREAD = 32767  # elements; with more, PyTorch's operators use several threads (at::internal::GRAIN_SIZE)


class Stack(Protocol):
    """Weights of all experts behind each other, in whatever form."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Experts, outputs and inputs."""
        ...


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(activation(gate(x)) * up(x)).

    Shapes:
        gate_up [2 * intermediate, E], down [E, intermediate]
    """

    gate_up: Product
    down: Product
    activation: Literal["silu", "gelu_tanh"]

    def __call__(self, rows: Tensor) -> Tensor:
        """Return what the MLP adds: [T, E] -> [T, E]."""
        gate, up = self.gate_up(rows).chunk(2, dim=-1)
        for part in _parts(gate):
            if self.activation == "silu":
                F.silu(part, inplace=True)
            else:
                torch.ops.aten.gelu_(part, approximate="tanh")
        return self.down(gate * up)

    def mapped(self, change: Callable[[Product], Product]) -> Mlp:
        """Return the same with each product changed."""
        return replace(self, gate_up=change(self.gate_up), down=change(self.down))


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Cut rows [T, I] into views that one thread computes each.

    PyTorch deals the elements of larger tensors out to its threads, wherever in a row that cuts. The last of
    a share, which do not fill a vector, get another exponential that differs in the last bit, so what a row
    gets would depend on the number of rows.
    """
    if rows.device.type != "cpu" or torch.get_num_threads() == 1:
        return (rows,)
    return torch.split(rows, max(1, _ONE_THREAD // rows.shape[1]))


@dataclass(frozen=True, slots=True)
class Experts:
    """A sparse mixture: each token goes through the experts that the router likes best, and their sum counts.

    Args:
        router: scores the experts.
        experts: all of them.
        num_per_token: how many each token goes through.
        normalizes_weights: the weights of a token's experts are made to add up to 1.
        stacks: of gate_up and down of all experts, which hold views of them; None where those are packed, or
            quantized and not stacked.
    Shapes:
        router [N, E]; stacks [N, 2 * intermediate, E] and [N, E, intermediate]
    """

    router: Tensor
    experts: tuple[Mlp, ...]
    num_per_token: int
    normalizes_weights: bool
    stacks: tuple[Stack, Stack] | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Return what the experts add: [T, E] -> [T, E]."""
        return self.answer(rows, tiled(Linear(self.router), rows))

    def answer(self, rows: Tensor, scores: Tensor) -> Tensor:
        """Return the same, given what the router says: rows [T, E], scores [T, N] -> [T, E]."""
        probabilities = scores.softmax(dim=-1, dtype=torch.float32)
        weights, chosen = probabilities.topk(self.num_per_token, dim=-1)  # [T, K]
        if self.normalizes_weights:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights.to(rows.dtype)
        out = torch.zeros_like(rows)
        for index in sorted(set(chosen.flatten().tolist())):
            tokens, places = torch.where(chosen == index)
            answered = self.experts[index](rows[tokens])
            out.index_add_(0, tokens, answered * weights[tokens, places].unsqueeze(-1))
        return out

    def mapped(self, change: Callable[[Product], Product]) -> Experts:
        """Return the same with each product changed."""
        experts = tuple(expert.mapped(change) for expert in self.experts)
        is_view = all(isinstance(expert.gate_up, Linear) for expert in experts)
        return replace(self, experts=experts, stacks=self.stacks if is_view else None)
