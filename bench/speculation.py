"""What guessing ahead gains: `python bench/speculation.py` (SmolLM2 unless --model says else).

The same requests one after another at two servers, with and without `--speculative ngram`, measured in turn.
They continue texts that repeat themselves, as edits, logs, tables and code do, and, for comparison, texts of
words in random order. Greedy answers must be equal. Table to standard error, JSON to standard output.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import click
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from loadgen.models import smollm2
from loadgen.process import NAME, Server, running, stoker
from loadgen.prompts import prompt

OUTPUT_TOKENS = 128
WAYS = ("none", "ngram")
RECORDS = [
    '{"id": %d, "name": "item %d", "price": 19.99, "in_stock": true, "tags": ["new", "sale"]}',
    "2026-03-%02d 12:00:%02d INFO worker-1 finished the job without an error in 12 ms",
    "| %d | Berlin | Germany | 3,500,000 | %d | capital |",
    "    assert add(%d, %d) == 5, 'the sum of both numbers is wrong'",
]


def repeating() -> list[str]:
    """Return beginnings of files whose lines are nearly the same."""
    return ["\n".join(record % (i, i) for i in range(1, 9)) + "\n" for record in RECORDS]


def other() -> list[str]:
    """Return texts without repetition."""
    return [prompt(150, 7, index) for index in range(4)]


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="Default SmolLM2.")
@click.option("--rounds", type=click.IntRange(1), default=3)
@click.option("--check", is_flag=True, help="Fail when repeating texts are not 1.5 times as fast.")
def main(model: Path | None, rounds: int, check: bool) -> None:
    """Measure both ways side by side."""
    report = uvloop.run(measure(model or smollm2(), rounds))
    for kind in ("repeating", "other"):
        none, ngram = (statistics.median(report[kind][way]) for way in WAYS)
        click.echo(
            f"{kind:10} {none:7.1f} tok/s without, {ngram:7.1f} with guesses: {ngram / none:.2f} times",
            err=True,
        )
    click.echo(f"guessed tokens that were right: {report['acceptance_rate']:.1%}", err=True)
    click.echo(json.dumps(report, indent=2))
    ratio = statistics.median(report["repeating"]["ngram"]) / statistics.median(report["repeating"]["none"])
    sys.exit(1 if report["num_different"] or (check and ratio < 1.5) else 0)


async def measure(model: Path, rounds: int) -> dict[str, Any]:
    """Send every text in every way and round."""
    report: dict[str, Any] = {"num_different": 0}
    async with contextlib.AsyncExitStack() as stack:
        servers = {
            way: await stack.enter_async_context(running(stoker(model, ("--speculative", way)), 120.0))
            for way in WAYS
        }
        http = await stack.enter_async_context(aiohttp.ClientSession())
        for server in servers.values():
            await _answers(http, server, other()[:1])
        for kind, texts in (("repeating", repeating()), ("other", other())):
            speeds: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                answers = []
                for way, server in servers.items():
                    found, tok_s = await _answers(http, server, texts)
                    answers.append(found)
                    speeds[way].append(tok_s)
                report["num_different"] += sum(a != b for a, b in zip(*answers, strict=True))
            report[kind] = speeds
        report["acceptance_rate"] = await _acceptance_rate(http, servers["ngram"])
    return report


async def _answers(
    http: aiohttp.ClientSession, server: Server, texts: Sequence[str]
) -> tuple[list[str], float]:
    """Return the answers to the texts, one after another, and output tokens per second."""
    started_s = time.perf_counter()
    answers, num_tokens = [], 0
    for text in texts:
        body = {
            "model": NAME,
            "prompt": text,
            "max_tokens": OUTPUT_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        async with http.post(f"{server.url}/v1/completions", json=body) as response:
            response.raise_for_status()
            answer = await response.json()
        answers.append(answer["choices"][0]["text"])
        num_tokens += answer["usage"]["completion_tokens"]
    return answers, num_tokens / (time.perf_counter() - started_s)


async def _acceptance_rate(http: aiohttp.ClientSession, server: Server) -> float:
    async with http.get(f"{server.url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        values = {sample.name: sample.value for family in families for sample in family.samples}
    guessed = values["vllm:spec_decode_num_draft_tokens_total"]
    return values["vllm:spec_decode_num_accepted_tokens_total"] / guessed if guessed else 0.0


if __name__ == "__main__":
    main()
