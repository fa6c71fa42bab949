"""Contexts of several segments, which threads share: equal to PyTorch's, and to themselves in every bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_models import BLOCK_SIZE, DTYPES, TOLERANCE, Model, logits_of, plan, tokens
from torch import Tensor

LENGTH = 1400  # tokens: three segments of 512
NUM_BLOCKS = 120
CONTEXT = range(LENGTH // BLOCK_SIZE + 1)  # blocks
FREE = len(CONTEXT)  # the first block that others may use
# Windows within a segment, and over the border of two.
MODELS = {
    "llama": {"max_position_embeddings": 2048},
    "mistral-window": {"max_position_embeddings": 2048, "sliding_window": 700},
    "gemma3": {"max_position_embeddings": 2048},
}


@pytest.fixture(scope="module", params=DTYPES, ids=["float32", "bfloat16"])
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, int], Model]]:
    """By family and number of threads."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield {
            (family, num_threads): Model(
                tmp_path_factory.mktemp(family), family, request.param, monkeypatch, num_threads, **fields
            )
            for family, fields in MODELS.items()
            for num_threads in (1, 3)
        }


def in_chunks(model: Model, cuts: set[int], neighbours: Sequence[int]) -> Tensor:
    """Compute the prompt in chunks, each beside some short prompts, and return its last logits."""
    cache, prompt = model.cache(NUM_BLOCKS), tokens(LENGTH, 1)
    others = [
        (tokens(count, index), 0, range(FREE + 2 * index, FREE + 2 * index + 2))
        for index, count in enumerate(neighbours)
    ]
    for start, end in pairwise([0, *sorted(cuts), LENGTH]):
        logits = logits_of(model.native, cache, plan(*others, (prompt[start:end], start, CONTEXT)))
    return logits[-1]


@pytest.mark.parametrize("family", MODELS)
def test_long_contexts_equal_pytorchs(family: str, models: dict[tuple[str, int], Model]) -> None:
    model = models[family, 3]
    steps = (
        plan((tokens(1000, 1), 0, CONTEXT), (tokens(20, 2), 0, (FREE, FREE + 1))),
        plan((tokens(399, 3), 1000, CONTEXT), ([5], 20, (FREE, FREE + 1))),
        plan(([7], LENGTH - 1, CONTEXT)),
    )
    native = logits_of(model.native, model.cache(NUM_BLOCKS), *steps)
    plain = logits_of(model.plain, model.cache(NUM_BLOCKS), *steps)
    torch.testing.assert_close(native, plain, rtol=0, atol=TOLERANCE[model.native.dtype])


@pytest.mark.parametrize("family", MODELS)
@given(
    cuts=st.sets(st.integers(1, LENGTH - 1) | st.sampled_from([511, 512, 513, 1024, LENGTH - 1]), max_size=5),
    neighbours=st.lists(st.integers(1, 30), max_size=4),
    num_threads=st.sampled_from([1, 3]),
)
def test_chunks_neighbours_and_threads_change_no_bit(
    family: str,
    cuts: set[int],
    neighbours: list[int],
    num_threads: int,
    models: dict[tuple[str, int], Model],
) -> None:
    alone = in_chunks(models[family, 1], set(), [])
    assert torch.equal(in_chunks(models[family, num_threads], cuts, neighbours), alone)
