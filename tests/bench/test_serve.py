"""The benchmark of the runtime without a runtime: which prompts it sends, and what it calls a miss."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import serve
from loadgen import prompts
from loadgen.process import Memory


def make_report(**changes: object) -> dict[str, Any]:
    memory = {"rss_bytes": serve.MAX_RSS_BYTES - 1}
    report: dict[str, Any] = {
        "ratio_16_to_1": 4.0,
        "start_to_ready_s": [5.0, 5.9],
        "memory_idle": memory,
        "memory_after_load": memory,
        "num_failed": 0,
    }
    return {**report, **changes}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, ""),
        ({"ratio_16_to_1": 3.99}, "3.99 times"),
        ({"start_to_ready_s": [5.0, 6.0]}, "6.00 s"),
        ({"memory_after_load": {"rss_bytes": serve.MAX_RSS_BYTES}}, "1638 MiB"),
    ],
)
@pytest.mark.parametrize("is_checked", [False, True])
def test_a_missed_bar_is_named_and_fails_only_a_check(
    changes: dict[str, object], word: str, is_checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measure(*_: object) -> dict[str, Any]:
        return make_report(**changes)

    monkeypatch.setattr(serve, "measure", measure)
    result = CliRunner().invoke(serve.main, ["--model", ".", *(["--check"] if is_checked else [])])

    is_missed = is_checked and bool(word)
    assert result.exit_code == int(is_missed)
    assert ("MISSED" in result.stderr) is is_missed
    assert not is_missed or word in result.stderr


def test_a_check_needs_both_levels() -> None:
    result = CliRunner().invoke(serve.main, ["--model", ".", "--check", "--concurrency", "16"])

    assert result.exit_code == 2
    assert "--concurrency" in result.stderr


async def test_no_measurement_sends_the_prompts_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = [serve.BATCH_SEED, serve.PROBE_SEED]

    @asynccontextmanager
    async def serving(*_: object) -> Any:
        yield SimpleNamespace(url="http://x", pid=1, start_to_ready_s=1.0)

    async def run(target: object, load: Any) -> Any:
        seeds.append(load.seed)
        summary = SimpleNamespace(requests=0, succeeded=0, output_token_per_s=1.0, as_json=dict)
        return SimpleNamespace(summary=summary)

    async def join_ttft(server: object) -> tuple[None, list[object]]:
        return None, []

    for name, value in {"serving": serving, "run": run, "join_ttft": join_ttft}.items():
        monkeypatch.setattr(serve, name, value)
    monkeypatch.setattr(serve, "memory", lambda pid: Memory(1, 2, 3))
    monkeypatch.setattr(serve, "table", lambda runs: "")
    await serve.measure(Path("."), (1, 16, 32), 1, ())

    assert len(seeds) == len(set(seeds)) == 6
    for one, other in itertools.combinations(seeds, 2):
        first = {prompts.prompt(serve.PROMPT_TOKENS, one, index) for index in range(64)}
        assert first.isdisjoint(prompts.prompt(serve.PROMPT_TOKENS, other, index) for index in range(64))
