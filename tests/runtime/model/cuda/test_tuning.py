"""What is measured computes the same in every way, and what is chosen computes the steps afterwards."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_references import random_weight
from model_builders import VOCAB_SIZE, make_engine, reference, run_to_end, write_model
from runtime_builders import make_request

from loadgen.checkpoints import Gptq, write_quantized
from stoker_runtime.config import EngineConfig
from stoker_runtime.engine.engine import Engine
from stoker_runtime.model import loader
from stoker_runtime.model.architecture import Architecture
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.cuda import choice_file, layers, spans, tuning
from stoker_runtime.model.cuda.choices import Choice, Decision
from stoker_runtime.model.cuda.chooser import Chooser, Way
from stoker_runtime.model.cuda.chunk_attention import ChunkLaunch
from stoker_runtime.model.cuda.decode_attention import DecodeLaunch
from stoker_runtime.model.cuda.decoder import CudaDecoder, kernel_linears
from stoker_runtime.model.cuda.launches import num_processors
from stoker_runtime.model.cuda.quantized_linear import KernelLinear
from stoker_runtime.model.cuda.remembered import remembered
from stoker_runtime.model.cuda.sample_step import sample_step
from stoker_runtime.model.cuda.sdpa_attention import attend_spans
from stoker_runtime.model.cuda.shapes import Heads, Scoring
from stoker_runtime.model.cuda.spans import Span, are_long, spans_of
from stoker_runtime.model.cuda.stopwatch import Limits, Run
from stoker_runtime.model.cuda.tuning import Attention, Workload, choose_launches, choose_many_rows
from stoker_runtime.model.fp8 import FP8
from stoker_runtime.model.quantized.linear import QuantizedLinear

SMALL = Workload(24, (0, 16), ((1, 270), (2, 20)), rows=(32, 64, 128))
IS_INTERPRETED = "TRITON_INTERPRET" in os.environ
HEADS, SCORING = Heads(4, 2, 64), Scoring(0.125)


class Favouring(Chooser):
    """Runs all candidates, and finds the named ones faster than all others."""

    def __init__(self, *favourites: str) -> None:
        super().__init__(self._time, limits=Limits(1, 0.0))
        self._favourites = favourites
        self._names: list[str] = []

    def choose(self, choice: Choice, prepare: Callable[[], Mapping[str, Way]], tolerance: float) -> str:
        self._names = list(choice.candidates)
        taken = super().choose(choice, prepare, tolerance)
        assert not self.decisions[-1].excluded, "all compute the same"
        return taken

    def _time(self, run: Run) -> float:
        run()
        return 0.5 if self._names.pop(0) in self._favourites else 1.0


def attention(device: torch.device, **fields: Any) -> Attention:
    dtype = torch.float16
    return replace(Attention(HEADS, SCORING, 512, 16, dtype, dtype, device), **fields)


@pytest.mark.parametrize(
    ("favourites", "decodes", "chunks", "has_sdpa"),
    [
        pytest.param((), (4, 3), (8, 2), False, id="defaults"),
        pytest.param(("2 programs per processor and 3 stages", "sdpa"), (2, 3), (8, 2), True, id="sdpa"),
        pytest.param(
            ("8 programs per processor and 2 stages", "4 warps and 3 stages"),
            (8, 2),
            (4, 3),
            False,
            id="others",
        ),
    ],
)
def test_what_is_fastest_is_launched(
    favourites: Sequence[str],
    decodes: tuple[int, int],
    chunks: tuple[int, int],
    has_sdpa: bool,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spans, "FEWEST_TOKENS", 16)
    monkeypatch.setattr(tuning, "num_processors", lambda _: 1)
    found = choose_launches(Favouring(*favourites), attention(device), SMALL)
    assert found.decodes == DecodeLaunch(*decodes)
    assert found.chunks == ChunkLaunch(*chunks)
    assert found.has_sdpa is has_sdpa


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=2 if IS_INTERPRETED else 8
)
@given(
    heads=st.sampled_from([Heads(4, 4, 64), Heads(6, 2, 80), Heads(2, 1, 256)]),
    scoring=st.sampled_from(
        [Scoring(0.1), Scoring(0.1, 20.0), Scoring(0.1, None, 9), Scoring(0.1, None, 64)]
    ),
    block_size=st.sampled_from([1, 7, 16]),
    # In float32 no device has a fused operator, and the interpreter multiplies bfloat16 wrongly.
    dtype=st.sampled_from([torch.float16, torch.float32 if IS_INTERPRETED else torch.bfloat16]),
    is_fp8=st.booleans(),
)
def test_all_candidates_compute_the_same(
    device: torch.device,
    heads: Heads,
    scoring: Scoring,
    block_size: int,
    dtype: torch.dtype,
    is_fp8: bool,
) -> None:
    kv_dtype = FP8 if is_fp8 else dtype
    shape = attention(
        device, heads=heads, scoring=scoring, block_size=block_size, dtype=dtype, kv_dtype=kv_dtype
    )
    chooser = Favouring()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "FEWEST_TOKENS", 64)
        choose_launches(chooser, shape, replace(SMALL, decodes=((1, 260),)))
    names = [decision.choice.name for decision in chooser.decisions]
    can_be_sdpa = not is_fp8 and scoring.cap is None and scoring.window != 9
    assert (
        names
        == ["attention of chunks", "attention of decodes", "attention of long prompts"][: 2 + can_be_sdpa]
    )


def test_signatures_tell_apart_what_takes_another_time(device: torch.device) -> None:
    shapes = [
        attention(device),
        attention(device, heads=Heads(4, 1, 64)),
        attention(device, scoring=Scoring(0.125, 30.0)),
        attention(device, scoring=Scoring(0.125, None, 300)),
        attention(device, block_size=32),
        attention(device, dtype=torch.bfloat16),
        attention(device, kv_dtype=FP8),
    ]
    assert len({shape.signature for shape in shapes}) == len(shapes)


@given(
    longest=st.integers(2, 1 << 17),
    token_bytes=st.integers(64, 1 << 20),
)
def test_a_workload_fits_the_model_and_the_memory(longest: int, token_bytes: int) -> None:
    found = Workload().fitted(longest, token_bytes)
    most_tokens = max(1, found.most_bytes // token_bytes)
    assert 0 < found.chunk_tokens <= 2048
    for context in found.chunk_contexts:
        assert 0 <= context + found.chunk_tokens <= min(longest, most_tokens)
    for count, context in found.decodes:
        assert count > 0
        assert 0 < context <= longest
        assert count * context <= most_tokens


def test_a_workload_of_a_large_model_is_what_it_says() -> None:
    assert Workload().fitted(131072, 4096) == Workload()


def test_rows_of_quantized_weights_are_chosen_by_kind(device: torch.device) -> None:
    small, large = (random_weight("4", size, 64, 32).to(device) for size in (16, 48))
    other, odd = random_weight("fp8", 32, 64, 1000).to(device), random_weight("4", 8, 56, 7).to(device)
    linears = [KernelLinear(QuantizedLinear(weights)) for weights in ((small, other), (large,), (odd,))]
    chooser = Favouring("codes")
    choose_many_rows(chooser, linears, torch.float16, SMALL.rows)
    assert [linear._many_rows for linear in linears] == [[129, 129], [129], [65]]
    choices = [decision.choice for decision in chooser.decisions]
    assert [choice.name for choice in choices] == [
        f"product of {rows} rows with {kind}"
        for kind in ("4 bits in groups of 32", "fp8")
        for rows in (32, 64, 128)
    ]
    assert [choice.signature for choice in choices[::3]] == [
        "48 x 64, rows of float16",
        "32 x 64, rows of float16",
    ]
    assert [choice.default for choice in choices[:3]] == ["codes", "codes", "dequantized"]
    choose_many_rows(Favouring("dequantized"), linears, torch.float16, SMALL.rows)
    assert [linear._many_rows for linear in linears] == [[17, 17], [17], [65]]
    choose_many_rows(Favouring(), linears, torch.float16, SMALL.rows)
    assert [linear._many_rows for linear in linears] == [[65, 65], [65], [65]]


def test_spans_are_the_chunks_of_a_step(device: torch.device) -> None:
    step = sample_step([(20, 1), (5, 9), (0, 3)], 4, 8, device)
    fields = step.packed.fields
    assert spans_of(fields) == (Span(1, 9, 5, 6), Span(10, 3, 0, 10))
    assert spans_of(sample_step([(20, 1)], 4, 8, device).packed.fields) == ()


def test_chunks_are_long_on_average() -> None:
    def of(*counts: int) -> list[Span]:
        return [Span(0, count, 0, 0) for count in counts]

    assert are_long(of(1024))
    assert are_long(of(2048, 64, 1024))
    assert not are_long(of(1023))
    assert not are_long(of(2048, 64, 64))
    assert not are_long([])


def prompts(count: int, longest: int) -> list[list[int]]:
    return [
        [(7 * i + 3 * j * j + j) % VOCAB_SIZE for j in range(2 + i * longest // count)] for i in range(count)
    ]


def make_chosen_engine(
    folder: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch, change: Callable[[CudaDecoder], None]
) -> Engine:
    """An engine over the kernels, after a change that a measurement might have led to."""

    def decoder(_: EngineConfig, architecture: Architecture, assembly: Assembly) -> CudaDecoder:
        assembly.keep_quantized(rounds_to_fp8=False)
        found = CudaDecoder(architecture, assembly)
        change(found)
        return found

    monkeypatch.setattr(loader, "_decoder", decoder)
    monkeypatch.setattr(loader, "buckets", lambda _: [])
    return make_engine(folder, device=device.type, num_blocks=64, block_size=8, budget=24)


def generate(engine: Engine) -> list[tuple[list[int], list[int]]]:
    """Prompts and outputs of requests that arrive in chunks beside decodes."""
    requests = [make_request(prompt, max_tokens=2) for prompt in prompts(3, 60)]
    outputs = run_to_end(engine, {i: [request] for i, request in enumerate(requests)})
    return [(request.prompt_token_ids, outputs[request.request_id]) for request in requests]


# llama3: none of its chunks is cut by a window; qwen3-window: those of every second layer; gemma2: capped
@pytest.mark.parametrize(
    ("family", "attends"),
    [
        pytest.param("llama3", {0, 1}, id="plain"),
        pytest.param("qwen3-window", {0, 1}, id="some-layers-have-a-window"),
        pytest.param("gemma2", set(), id="caps"),
        pytest.param("mixtral", {0, 1}, id="mixture", marks=pytest.mark.long),
    ],
)
def test_a_mix_with_pytorchs_attention_equals_the_reference(
    family: str, attends: set[int], device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[tuple[Scoring, int]]()

    def spy(*args: Any) -> None:
        calls.append((args[6], max(span.context for span in args[4])))
        attend_spans(*args)

    def change(decoder: CudaDecoder) -> None:
        decoder.set_launches(replace(decoder._launches, has_sdpa=True))

    monkeypatch.setattr(spans, "FEWEST_TOKENS", 2)
    monkeypatch.setattr(layers, "attend_spans", spy)
    write_model(tmp_path, family)
    engine = make_chosen_engine(tmp_path, device, monkeypatch, change)
    for prompt, output in generate(engine):
        assert reference(family).num_near_ties(prompt, output) == 0
    assert bool(calls) is bool(attends)
    assert all(scoring.window is None or context <= scoring.window for scoring, context in calls)
    if attends:
        assert max(context for _, context in calls) > 24, "some chunks had tokens before them"


def test_a_mix_with_other_launches_is_the_same(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(decoder: CudaDecoder) -> None:
        launches = replace(decoder._launches, decodes=DecodeLaunch(9, 4), chunks=ChunkLaunch(8, 3))
        decoder.set_launches(launches)

    write_model(tmp_path, "llama")
    expected = generate(make_chosen_engine(tmp_path, device, monkeypatch, lambda _: None))
    assert generate(make_chosen_engine(tmp_path, device, monkeypatch, change)) == expected
    for prompt, output in expected:
        assert reference("llama").num_near_ties(prompt, output) == 0


def test_a_quantized_model_generates_the_same_however_it_multiplies(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "plain", "llama")
    write_quantized(tmp_path / "plain", tmp_path / "small", Gptq(group_size=32))
    found = []
    for favourite, many_rows in (("codes", 33), ("dequantized", 17)):

        def change(decoder: CudaDecoder, favourite: str = favourite, many_rows: int = many_rows) -> None:
            linears = kernel_linears(decoder._loaded)
            choose_many_rows(Favouring(favourite), linears, torch.float32, (32,))
            assert [linear._many_rows for linear in linears] == [
                [many_rows] * len(linear.weights) for linear in linears
            ]
            assert len(linears) == 8

        found.append(generate(make_chosen_engine(tmp_path / "small", device, monkeypatch, change)))
    assert found[0] == found[1]


def test_a_decoder_launches_what_its_chooser_chose(device: torch.device, tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    with pytest.MonkeyPatch.context() as patch:
        decoder: Any = make_chosen_engine(tmp_path, device, patch, lambda _: None)._runner.decoder  # type: ignore[attr-defined]
    chooser = Favouring("8 programs per processor and 3 stages")
    decoder.choose_with(chooser, 8, torch.float32, SMALL)
    assert decoder._launches.decodes == DecodeLaunch(8 * num_processors(device), 3)
    assert [layer._launches for layer in decoder._layers] == [decoder._launches] * 2
    assert decoder.decisions == tuple(chooser.decisions)
    assert len(decoder.decisions) == 2


def test_a_second_start_measures_nothing(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_model(tmp_path / "model", "llama")
    found = []
    plain = Workload.fitted
    if device.type == "cpu":  # what a GPU is measured with takes the interpreter minutes
        monkeypatch.setattr(Workload, "fitted", lambda _, *sizes: plain(SMALL, *sizes))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            with pytest.MonkeyPatch.context() as patch:
                engine: Any = make_chosen_engine(tmp_path / "model", device, patch, lambda _: None)
            engine._runner.decoder.choose(8, torch.float32)
            found.append(engine._runner.decoder.decisions)
    assert found[0] == found[1]
    lines = [record.message for record in caplog.records if record.message.startswith("chose kernels in ")]
    assert "measured before" not in lines[0]
    assert lines[1].count("measured before") == len(found[1]) == 2
    (path,) = (tmp_path / "cache" / "stoker").iterdir()
    path.write_text("{}")
    engine._runner.decoder.choose(8, torch.float32)
    assert "so kernels are measured again" in caplog.text


def test_without_a_place_for_files_each_start_measures(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice_file, "default_folder", lambda _: None)
    ways: dict[str, Way] = {"x": lambda: torch.ones(1, 1, device=device)}
    with caplog.at_level(logging.INFO), remembered(device) as chooser:
        assert chooser.choose(Choice("something", "", ("x",)), lambda: ways, 0.0) == "x"
    assert "each start measures kernels again" in caplog.text
    assert "something: x (x: " in caplog.text


class ChoosingStandIn(SimpleNamespace):
    """A decoder that can be on a device that is not there."""

    def __call__(self, plan: Any, cache: Any) -> Any: ...


@pytest.mark.parametrize(("setting", "device_type", "expected"), [
    ("auto", "cuda", 1), ("defaults", "cuda", 0), ("auto", "cpu", 0)
])  # fmt: skip
def test_the_loader_lets_a_decoder_choose_on_a_cuda_device(
    setting: Any, device_type: str, expected: int
) -> None:
    chosen = list[tuple[int, torch.dtype]]()
    members = dict.fromkeys(("architecture", "num_bytes", "picker", "dtype"))
    decoder = ChoosingStandIn(
        **members,
        device=torch.device(device_type),
        decisions=(),
        set_max_positions=lambda _: None,
        choose=lambda *sizes: chosen.append(sizes),
    )
    config = EngineConfig(model="/model", kernel_choices=setting, block_size=32)
    loader._choose_kernels(config, decoder, torch.bfloat16)
    assert chosen == [(32, torch.bfloat16)] * expected


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [None, Gptq(group_size=128)], ids=["plain", "gptq"])
def test_a_gpu_is_measured_once(
    layout: Gptq | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At heads of real sizes, in bfloat16."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sizes = {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128}
    folder = tmp_path / "model"
    write_model(folder, "llama", max_position_embeddings=16384, intermediate_size=2048, **sizes)
    if layout is not None:
        write_quantized(folder, tmp_path / "small", layout)
        folder = tmp_path / "small"
    found: list[dict[str, Decision]] = []
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            engine: Any = make_engine(folder, device="cuda", dtype="bfloat16", kernel_choices="auto")
            found.append({one.choice.name: one for one in engine._runner.decoder.decisions})
    assert found[0] == found[1]
    names = {"attention of chunks", "attention of decodes", "attention of long prompts"}
    if layout is not None:
        names |= {f"product of {rows} rows with 4 bits in groups of 128" for rows in Workload().rows}
    assert set(found[0]) == names
    for decision in found[0].values():
        assert not decision.excluded
        assert set(decision.seconds) == set(decision.choice.candidates)
