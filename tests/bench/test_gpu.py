"""The GPU benchmark: its arithmetic, its plumbing on a small model, its refusal without a device."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from model_builders import write_model
from torch.autograd import DeviceType  # type: ignore[attr-defined]

import gpu
from gpubench import figures, steps
from gpubench.random_model import LLAMA_8B, Shape, write_random_model
from gpubench.report import Report
from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import StepPlan
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.cuda.choices import Choice, Decision
from stoker_runtime.tokenizer_files import load_assets

SMALL = Shape(64, 96, 2, 4, 2, 300, 128)


def test_without_a_cuda_device_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(gpu.main, [])
    assert result.exit_code == 1
    assert "no usable CUDA device" in result.output


def test_an_unknown_device_needs_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Abacus")
    result = CliRunner().invoke(gpu.main, ["--peak-bandwidth", "1e12"])
    assert result.exit_code == 2
    assert "NVIDIA Abacus is not known" in result.output


def test_the_longest_name_that_fits_a_device_counts() -> None:
    assert figures.peak_of("NVIDIA L40S") == figures.Peak(0.864e12, 362e12)
    assert figures.peak_of("NVIDIA H100 80GB HBM3") == figures.Peak(3.35e12, 989e12)
    assert figures.peak_of("NVIDIA A100-SXM4-80GB") == figures.Peak(2.04e12, 312e12)
    assert figures.peak_of("Abacus") is None


def test_figures_of_an_8b_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B.config("bfloat16")))
    architecture = read_config_json(tmp_path / "config.json")
    loaded = 2 * 8_030_261_248
    weights = figures.weight_bytes(architecture, loaded, 2, 1)
    assert weights == loaded - 2 * 128256 * 4096
    assert figures.kv_bytes_per_token(architecture, 2) == 131072
    # 15 GB in 5 ms are 3 TB/s
    assert figures.achieved_bandwidth(weights, 131072, [512], 0.005) == pytest.approx(3.015e12, rel=0.001)
    needed = figures.prefill_operations(architecture, loaded, 2, 1000)
    assert needed == pytest.approx(2 * 6.979e9 * 1000 + 1.05e9 + 4 * 32 * 4096 * 500_500, rel=0.001)


def test_a_step_of_a_mixture_reads_the_experts_that_are_chosen(tmp_path: Path) -> None:
    write_model(tmp_path, "mixtral")
    architecture = read_config_json(tmp_path / "config.json")
    settings = architecture.experts
    assert settings is not None
    experts = 3 * settings.num_experts * settings.intermediate_size * architecture.hidden_size
    experts *= architecture.num_layers
    share = settings.num_per_token / settings.num_experts
    rest = 10**6  # whatever else is loaded
    head = architecture.vocab_size * architecture.hidden_size
    read = [figures.weight_bytes(architecture, rest + experts, 1, rows) + head for rows in (1, 2, 1000)]
    assert read == [pytest.approx(rest + experts * part) for part in (share, share * (2 - share), 1.0)]
    few = figures.prefill_operations(architecture, rest + experts, 1, 1)
    assert few == pytest.approx(2 * (rest - head + experts * share) + 4 * 2 * 64, rel=0.01)


def test_all_that_needs_no_server_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_random_model(tmp_path, SMALL, torch.float32, torch.device("cpu"))
    load_assets(tmp_path)
    monkeypatch.setattr(gpu, "DECODES", ((1, 20), (3, 30), (1, 4096)))
    monkeypatch.setattr(gpu, "PREFILLS", (40, 8192))
    monkeypatch.setattr(gpu, "MIXED", ((0, 0, 20), (2, 40, 20), (1, 40, 8192)))
    monkeypatch.setattr(gpu, "FIRST_TOKEN_PROMPT", 10)
    for name, value in (("STREAMS", 4), ("STREAM_PROMPT", 8), ("STREAM_OUTPUT", 5), ("REPEATS", 4)):
        monkeypatch.setattr(gpu, name, value)
    config = EngineConfig(model=str(tmp_path), device="cpu", dtype="float32", kv_cache_bytes=1 << 20)
    peak = figures.Peak(1e12, 1e12)
    report = Report(tmp_path / "report.json", {"device": "a", "torch": "b", "triton": "c"})
    gpu.measure(config, peak, report)
    values = json.loads((tmp_path / "report.json").read_text())
    assert values == {**report.values, "failed": {}}
    assert values["kernel_choices"] == []
    assert [(row["batch"], row["context"]) for row in values["decode"]] == [(1, 20), (3, 30)]
    assert [row["tokens"] for row in values["prefill"]] == [40]
    assert [(row["decodes"], row["context"], row["prompt"]) for row in values["mixed"]] == [
        (0, 0, 20),
        (2, 40, 20),
    ]
    assert all(row["step_s"] > 0 for row in values["mixed"])
    assert "unrecorded" not in values
    for row in values["decode"]:
        assert 0 < row["bandwidth_share"] < 1
        assert row["token_per_s"] == row["batch"] / row["served_step_s"]
    assert values["first_token_s"] > 0
    assert values["engine"]["output_token_per_s"] > 0
    assert values["engine"]["scheduler_s"] > 0
    gpu.show(report)
    assert "tok/s, scheduler" in capsys.readouterr().err


def test_a_figure_that_fails_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path / "report.json", {"device": "a", "torch": "b", "triton": "c", "mixed": []})

    def fail() -> None:
        raise RuntimeError("no counters here")

    report.add("busy", fail, "1 x 512")
    report.add("first_token_s", lambda: 0.5)
    report.values["busy"] = [{"case": "64 x 1024", "busy": 0.991, "kernels": {"_splits_kernel": 0.002}}]
    report.add("streaming", partial(gpu._streaming, tmp_path, report))
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["first_token_s"] == 0.5
    assert values["failed"]["busy 1 x 512"] == "RuntimeError: no counters here"
    assert "the engine alone was not measured" in values["failed"]["streaming"]
    gpu.show(report)
    shown = capsys.readouterr().err
    assert "500.00 ms" in shown
    assert "GPU busy with 64 x 1024: 99.1%; ms per step:\n     2.000 _splits_kernel" in shown
    assert "busy 1 x 512 failed: RuntimeError: no counters here" in shown
    assert "busy 1 x 512: took 0.0 s" in shown


def test_only_what_ran_on_the_device_counts_as_busy() -> None:
    """Launches carry the time of what they launched, and annotations span what else is counted."""
    events = [
        SimpleNamespace(
            key=key, device_type=kind, self_device_time_total=time_us, is_user_annotation=is_annotation
        )
        for key, kind, time_us, is_annotation in (
            ("_splits_kernel", DeviceType.CUDA, 2e6, False),
            ("cudaGraphLaunch", DeviceType.CPU, 4e6, False),
            ("step", DeviceType.CUDA, 8e6, True),
            ("Memcpy HtoD", DeviceType.CUDA, 1e6, False),
        )
    ]
    assert steps.device_seconds(events) == {"_splits_kernel": 2.0, "Memcpy HtoD": 1.0}


class Asynchronous:
    """A runner that notes what is asked of it."""

    def __init__(self) -> None:
        self.calls = ""

    def ready(self) -> Any:
        return SimpleNamespace(device="cpu", async_scheduling=True)

    def step(self, plan: Any) -> Any: ...

    def submit(self, plan: Any) -> None:
        self.calls += "s"

    def collect(self) -> Any:
        self.calls += "c"


def test_two_steps_are_in_flight_where_they_would_be_served_so() -> None:
    runner: Any = Asynchronous()
    steps.run_in_a_row(runner, StepPlan([]), 3)
    assert runner.calls == "sscscc"


class RecordingStandIn:
    """A decoder that remembers what it should record."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Any, list[int], list[int]]] = []
        self.architecture = self.num_bytes = self.picker = self.dtype = self.device = None

    def set_max_positions(self, count: int) -> None: ...

    def record(self, cache: Any, sizes: list[int], token_sizes: list[int]) -> None:
        self.recorded.append((cache, sizes, token_sizes))

    def __call__(self, plan: Any, cache: Any) -> Any: ...


def test_steps_with_a_prompt_are_measured_with_and_without_recordings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = RecordingStandIn()
    ready = SimpleNamespace(block_size=16, num_blocks=100, max_model_len=900)
    runner: Any = SimpleNamespace(decoder=decoder, cache="cache", ready=lambda: ready)
    monkeypatch.setattr(steps, "step_seconds", lambda *_: 1.0 + len(decoder.recorded))
    monkeypatch.setattr(gpu, "MIXED", ((2, 40, 20),))
    config = EngineConfig(model="/model", max_num_seqs=2, max_recorded_tokens=24).for_device("cuda")
    report = Report(None, {"device": "a", "torch": "b", "triton": "c", "mixed": []})
    gpu.measure_mixed(runner, config, report)
    assert report.values["mixed"] == [{"decodes": 2, "context": 40, "prompt": 20, "step_s": 1.0}]
    assert report.values["unrecorded"] == [2.0]
    assert decoder.recorded == [("cache", [1, 2], []), ("cache", [1, 2], [16, 24])]
    gpu.show(report)
    assert "the same, kernel by kernel: 2000.00 ms" in capsys.readouterr().err


def test_what_was_chosen_at_the_start_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    choice = Choice("attention", "8 heads", ("triton", "sdpa"))
    decoder: Any = RecordingStandIn()
    decoder.choose, decoder.decisions = None, ()
    runner: Any = SimpleNamespace(decoder=decoder)
    assert gpu.kernel_choices(runner) == []
    decoder.choose = lambda *_: None
    decoder.decisions = (Decision(choice, "sdpa", {"triton": 0.002, "sdpa": 0.001}),)
    rows = json.loads(json.dumps(gpu.kernel_choices(runner)))
    assert rows[0]["taken"] == "sdpa"
    assert rows[0]["seconds"] == {"triton": 0.002, "sdpa": 0.001}
    report = Report(None, {"device": "a", "torch": "b", "triton": "c", "kernel_choices": rows})
    gpu.show(report)
    assert "attention: sdpa (triton: 2.000 ms, sdpa: 1.000 ms)" in capsys.readouterr().err


def test_a_mixed_plan_gives_the_prompt_blocks_behind_the_decodes() -> None:
    plan = steps.mixed_plan([5, 17], 20, 16)
    assert [request.block_ids for request in plan.requests] == [[0], [1, 2], [3, 4]]
    assert [len(request.token_ids) for request in plan.requests] == [1, 1, 20]
    assert steps.mixed_plan([], 20, 16).requests == steps.prefill_plan(20, 16).requests


def test_a_decode_plan_gives_each_request_blocks_of_its_own() -> None:
    plan = steps.decode_plan([5, 16, 17], 16)
    assert [request.block_ids for request in plan.requests] == [[0], [1], [2, 3]]
    assert [request.num_computed_tokens for request in plan.requests] == [4, 15, 16]
