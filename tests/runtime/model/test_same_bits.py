"""PyTorch's decoder: what a request gets is the same to the last bit however its tokens are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_builders import smollm2_path, write_model
from native_models import NUM_BLOCKS, Part, logits_of, plan, tokens
from runtime_builders import make_request
from torch import Tensor

from stoker_runtime.config import Dtype, EngineConfig
from stoker_runtime.engine.engine import Engine
from stoker_runtime.messages import AddRequest
from stoker_runtime.model import loader
from stoker_runtime.model.attention import is_attention_even
from stoker_runtime.model.decoder import Decoder
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.linear import EvenProducts, Linear, TiledProduct, is_even
from stoker_runtime.tokenizer_files import load_assets

FAMILIES = ["llama", "mistral", "mistral-window", "qwen2", "gemma2", "gemma3", "granite", "olmo2", "mixtral"]
LENGTH = 150
BLOCK_SIZE = 16
DTYPES: list[Dtype] = ["float32", "bfloat16"]


class Models:
    """Small models for PyTorch's decoder, each loaded once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[tuple[str, Dtype], Decoder] = {}

    def decoder(self, family: str, dtype: Dtype) -> Decoder:
        if (family, dtype) not in self._loaded:
            path = self._folder / family
            if not path.exists():
                write_model(path, family)
            config = EngineConfig(
                model=str(path), device="cpu", dtype=dtype, num_threads=2, kv_cache_bytes=1 << 22
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loader, "find_kernels", lambda *_: None)
                decoder = loader.load_runner(config).decoder  # type: ignore[attr-defined]
            assert isinstance(decoder, Decoder)
            self._loaded[family, dtype] = decoder
        return self._loaded[family, dtype]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def computed(
    decoder: Decoder, steps: Sequence[Sequence[Part]], num_threads: int = 1
) -> tuple[Tensor, KVCache]:
    """Compute steps, and return the logits of the last request of the last step and the cache."""
    torch.set_num_threads(num_threads)
    cache = KVCache(decoder.architecture, NUM_BLOCKS, BLOCK_SIZE, decoder.dtype, torch.device("cpu"))
    return logits_of(decoder, cache, *(plan(*parts) for parts in steps))[-1], cache


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@given(
    cuts=st.sets(st.integers(1, LENGTH - 1), max_size=6),
    num_decodes=st.integers(0, 4),
    neighbours=st.lists(st.integers(1, 30), max_size=5),
    num_threads=st.integers(1, 3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
def test_logits_do_not_depend_on_chunks_neighbours_or_threads(
    family: str,
    dtype: Dtype,
    cuts: set[int],
    num_decodes: int,
    neighbours: list[int],
    num_threads: int,
    models: Models,
) -> None:
    decoder = models.decoder(family, dtype)
    prompt, blocks = tokens(LENGTH, 1), range(10)
    alone, whole = computed(decoder, [[(prompt, 0, blocks)]])
    others = [
        (tokens(count, index), 0, range(10 + 2 * index, 12 + 2 * index))
        for index, count in enumerate(neighbours)
    ]
    cuts |= set(range(LENGTH - num_decodes, LENGTH))  # a prompt's end may have been decoded
    steps = [
        [*others, (prompt[start:end], start, blocks)] for start, end in pairwise([0, *sorted(cuts), LENGTH])
    ]
    logits, pieces = computed(decoder, steps, num_threads)
    assert torch.equal(logits, alone)
    in_order = [cache.storage[:, :, : len(blocks)].flatten(2, 3)[:, :, :LENGTH] for cache in (whole, pieces)]
    assert torch.equal(*in_order)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
@pytest.mark.parametrize("computed_before", [16, 32, 128, 144])
def test_a_prefix_hit_continues_with_what_the_whole_prompt_gives(
    computed_before: int, family: str, models: Models
) -> None:
    decoder = models.decoder(family, "float32")
    prompt, blocks = tokens(LENGTH, 2), range(10)
    alone, cache = computed(decoder, [[(prompt, 0, blocks)]])
    own = [*range(computed_before // BLOCK_SIZE), *range(20, 30)]
    hit = logits_of(decoder, cache, plan((prompt[computed_before:], computed_before, own)))
    assert torch.equal(hit[0], alone)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2"])
def test_decodes_of_many_lengths_get_what_each_gets_as_the_end_of_a_chunk(
    family: str, models: Models
) -> None:
    decoder = models.decoder(family, "float32")
    lengths = [1, 2, 15, 16, 17, 64, 127, 128, 129, 192]
    tables = [range(14 * i, 14 * i + 14) for i in range(len(lengths))]
    cache = KVCache(decoder.architecture, 14 * len(lengths), BLOCK_SIZE, decoder.dtype, torch.device("cpu"))
    parts = [
        (tokens(length + 1, index), 0, table)
        for index, (length, table) in enumerate(zip(lengths, tables, strict=True))
    ]
    whole = torch.cat([logits_of(decoder, cache, plan(part)) for part in parts])
    decodes = [([token_ids[-1]], len(token_ids) - 1, table) for token_ids, _, table in parts]
    assert torch.equal(logits_of(decoder, cache, plan(*decodes)), whole)
    assert torch.equal(logits_of(decoder, cache, plan(*decodes[::-1])), whole.flip(0))


def test_what_another_request_left_in_a_block_is_never_read(models: Models) -> None:
    decoder = models.decoder("gemma2", "float32")
    prompt, blocks = tokens(41, 1), range(3)
    steps = [[(prompt[:20], 0, blocks)], [(prompt[20:40], 20, blocks)], [(prompt[40:], 40, blocks)]]
    expected, cache = computed(decoder, steps)
    cache.storage.fill_(float("nan"))
    found = logits_of(decoder, cache, *(plan(*parts) for parts in steps))
    assert torch.equal(found[-1], expected)


@pytest.mark.parametrize("num_inputs", [64, 576])
def test_products_that_depend_on_the_number_of_rows_are_tiled(num_inputs: int) -> None:
    weight = torch.randn(48, num_inputs, generator=torch.Generator().manual_seed(1))

    def uneven(rows: Tensor) -> Tensor:  # a library that has a kernel of its own for few rows
        found = rows.double() @ weight.double().T if rows.shape[0] < 8 else rows @ weight.T
        return found.float()

    assert not is_even(uneven, num_inputs, torch.float32)
    even = EvenProducts()
    plain = even(Linear(weight))
    assert is_even(plain, num_inputs, torch.float32)
    assert is_even(TiledProduct(uneven, one_by_one=True), num_inputs, torch.float32)
    rows = torch.randn(11, num_inputs)
    torch.testing.assert_close(plain(rows), rows @ weight.T, rtol=1e-5, atol=1e-4)


def test_what_cannot_be_had_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    module = "stoker_runtime.model"
    monkeypatch.setattr(f"{module}.linear.is_even", lambda *_: False)
    monkeypatch.setattr(f"{module}.decoder.is_attention_even", lambda _: False)
    Models(tmp_path).decoder("llama", "float32")
    assert "attention depends on the batch" in caplog.text
    assert "products of 192 x 64 depend on the batch" in caplog.text  # gate and up


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 128])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_attention_is_even_on_this_machine(head_dim: int, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    assert is_attention_even(head_dim)


def outputs_of(engine: Engine, *requests: AddRequest) -> dict[str, list[tuple[object, ...]]]:
    """Tokens and log-probabilities of requests that arrive together."""
    outputs: dict[str, list[tuple[object, ...]]] = {}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step().outputs:
            assert output.error is None
            outputs.setdefault(output.request_id, []).append((output.token_ids, output.logprobs))
    return outputs


@pytest.fixture(scope="module")
def smollm2() -> Engine:
    config = EngineConfig(
        model=str(smollm2_path()),
        device="cpu",
        dtype="float32",
        num_threads=1,
        seed=0,
        kv_cache_bytes=4096 * 30 * 2 * 3 * 64 * 4,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "find_kernels", lambda *_: None)
        return Engine(loader.load_runner(config), config)


def test_a_seed_gives_the_same_text_cold_from_the_prefix_cache_and_in_a_batch(smollm2: Engine) -> None:
    tokenizer = load_assets(smollm2_path()).tokenizer
    text = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    text += "<|im_start|>user\nWrite a random word list<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer.encode(text, add_special_tokens=False).ids

    def request(seed: int, salt: str) -> AddRequest:
        return make_request(prompt, cache_salt=salt, temperature=1.0, seed=seed, max_tokens=20, logprobs=1)

    def answer(seed: int, salt: str) -> list[tuple[object, ...]]:
        wanted = request(seed, salt)
        return outputs_of(smollm2, wanted)[wanted.request_id]

    cold = []
    for seed in range(2):
        cold.append(answer(seed, f"cold {seed}"))
        assert answer(seed, f"cold {seed}") == cold[-1]
        assert answer(seed, f"salt {seed}") == cold[-1]
    assert smollm2.scheduler.stats().prefix_hits > 0
    batch = [request(seed, salt) for seed in range(2) for salt in ("cold 0", "new")]
    together = outputs_of(smollm2, *batch)
    for index, wanted in enumerate(batch):
        assert together[wanted.request_id] == cold[index // 2]
