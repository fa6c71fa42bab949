"""The `llm` command line, which reads of other servers in a file."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path

import cells
from cells import answer, task

os.environ["LLM_USER_PATH"] = task().folder

from llm.cli import cli

SERVER = {"model_name": task().model, "api_base": task().base_url}
MODELS = [{"model_id": "chat", **SERVER}, {"model_id": "text", "completion": True, **SERVER}]


def prompt(model: str, text: str, *flags: str) -> dict[str, object]:
    (Path(task().folder) / "extra-openai-models.yaml").write_text(json.dumps(MODELS))  # JSON is YAML
    sampling = {"temperature": 0, "seed": task().seed, "max_tokens": task().max_tokens}
    options = [word for name, value in sampling.items() for word in ("-o", name, str(value))]
    with redirect_stdout(io.StringIO()) as said:
        cli(["prompt", "-m", model, "--key", "unused", *options, *flags, text], standalone_mode=False)
    return answer(said.getvalue().removesuffix("\n"))


def chat() -> dict[str, object]:
    return prompt("chat", task().question, "--no-stream")


def stream() -> dict[str, object]:
    return prompt("chat", task().question)


def completion() -> dict[str, object]:
    return prompt("text", task().prompt, "--no-stream")


def completion_stream() -> dict[str, object]:
    return prompt("text", task().prompt)


if __name__ == "__main__":
    cells.run(chat, stream, completion, completion_stream)
