"""GuideLLM, the benchmark of the vLLM project, by its command line."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import cells
from cells import task

# Importing torch is most of a short benchmark's time: done once, and not in each process of each benchmark.
os.environ["GUIDELLM__MP_CONTEXT_TYPE"] = "forkserver"
os.environ["GUIDELLM__MAX_WORKER_PROCESSES"] = "1"

from guidellm.cli import cli

REQUESTS = 3
PROMPT_TOKENS = 16


def benchmark(name: str, **backend: object) -> dict[str, object]:
    """Run one benchmark; the report's own count of requests, and the tokens of each answer."""
    report = Path(task().folder) / f"{name}.json"
    options = {"kind": "openai_http", "target": task().root_url, **backend}
    sizes = f"prompt_tokens={PROMPT_TOKENS},output_tokens={task().max_tokens}"
    cli(
        [
            "run",
            *("--backend", ",".join(f"{key}={value}" for key, value in options.items())),
            *("--profile", "kind=concurrent,streams=2"),
            *("--constraint", f"kind=max_requests,count={REQUESTS}"),
            *("--tokenizer", f"kind=huggingface_auto,model={task().tokenizer}"),
            *("--data", f"kind=synthetic_text,{sizes}"),
            *("--output", f"kind=json,path={report}"),
            "--disable-console",
        ],
        standalone_mode=False,
    )
    (done,) = json.loads(report.read_text())["benchmarks"]
    totals, requests = done["metrics"]["request_totals"], done["requests"]
    return {
        "requests": totals["successful"],
        "errors": [request["info"]["error"] for request in requests["errored"]],
        "unfinished": totals["incomplete"],
        "output_tokens": [request["output_tokens"] for request in requests["successful"]],
        "first_token_ms": [request["time_to_first_token_ms"] for request in requests["successful"]],
    }


def chat() -> dict[str, object]:
    return benchmark("chat", model=task().model, stream=False)


def stream() -> dict[str, object]:
    return benchmark("stream")  # it asks the server for its model


def completion() -> dict[str, object]:
    return benchmark("completion", request_format="/v1/completions")


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["guidellm.cli"])
    cells.run(chat, stream, completion)
