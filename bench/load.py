"""Load client for OpenAI-compatible servers: `python bench/load.py --url URL --model NAME --requests 100`.

Closed loop (--concurrency) or open loop (--rate); ends after --requests, --duration, SIGTERM or, with
--until-eof, when standard input closes. Prints a table to standard error and JSON to standard output; with
--until-eof each line on standard input is answered by a line of JSON that says how far the run has come.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

import click
import uvloop

from loadgen.client import Api, Target
from loadgen.results import table
from loadgen.run import Load, Progress, Run, run


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--url", required=True, help="Base address of the server, without /v1.")
@click.option("--model", required=True, help="Model name to ask for.")
@click.option("--api", type=click.Choice(["completions", "chat"]), default="completions")
@click.option("--stream/--no-stream", default=True, help="Ask for server-sent events.")
@click.option("--concurrency", type=click.IntRange(1), default=1, help="Requests in flight (closed loop).")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests per second (open loop).")
@click.option("--requests", type=click.IntRange(1), help="Stop after this many requests.")
@click.option(
    "--duration", type=click.FloatRange(0, min_open=True), help="Start none after this many seconds."
)
@click.option(
    "--until-eof",
    is_flag=True,
    help="Start none once standard input has closed; a line there asks how far it is.",
)
@click.option("--prompt-tokens", type=click.IntRange(1), default=64)
@click.option("--output-tokens", type=click.IntRange(1), default=64)
@click.option("--ignore-eos/--stop-at-eos", default=True, help="Ask for exactly --output-tokens tokens.")
@click.option("--same-prompt", is_flag=True, help="One prompt for all requests.")
@click.option("--keep-alive", is_flag=True, help="Reuse connections; default is a new one per request.")
@click.option(
    "--timeout", "timeout_s", type=float, default=120.0, help="Seconds until an answer counts as failed."
)
@click.option("--seed", type=int, default=0, help="Seed of prompts and arrival times.")
@click.option("--records", is_flag=True, help="Add every request's own figures to the JSON.")
def main(**options: Any) -> None:
    """Send load to an OpenAI-compatible server; exit status 1 when a request failed."""
    if options["requests"] is None and options["duration"] is None and not options["until_eof"]:
        raise click.UsageError("give --requests, --duration or --until-eof: a run needs an end")
    api: Api = options["api"]
    target = Target(
        url=options["url"],
        model=options["model"],
        api=api,
        stream=options["stream"],
        ignore_eos=options["ignore_eos"],
        output_tokens=options["output_tokens"],
        timeout_s=options["timeout_s"],
    )
    load = Load(
        num_requests=options["requests"],
        duration_s=options["duration"],
        concurrency=options["concurrency"],
        rate_per_s=options["rate"],
        prompt_tokens=options["prompt_tokens"],
        seed=options["seed"],
        same_prompt=options["same_prompt"],
        keep_alive=options["keep_alive"],
    )
    done = uvloop.run(_run_until_told(target, load, until_eof=options["until_eof"]))
    click.echo(table({options["model"]: done.summary}), err=True)
    report: dict[str, Any] = {
        "target": asdict(target),
        "load": asdict(load),
        "summary": done.summary.as_json(),
    }
    if options["records"]:
        report["records"] = [asdict(outcome) for outcome in done.outcomes]
    click.echo(json.dumps(report))
    sys.exit(0 if done.summary.succeeded == done.summary.requests else 1)


async def _run_until_told(target: Target, load: Load, *, until_eof: bool) -> Run:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    progress = Progress()

    def read() -> None:
        asked = os.read(sys.stdin.fileno(), 4096)
        for _ in range(asked.count(b"\n")):
            click.echo(json.dumps(_so_far(progress)))
        if not asked:
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    if until_eof:
        loop.add_reader(sys.stdin.fileno(), read)
    return await run(target, load, stop, progress)


def _so_far(progress: Progress) -> dict[str, Any]:
    return {
        "now_s": progress.now_s(),
        "e2e_s": [round(outcome.e2e_s, 3) for outcome in progress.ended],
        "failed": sum(outcome.failure is not None for outcome in progress.ended),
    }


if __name__ == "__main__":
    main()
