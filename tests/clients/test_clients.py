"""Clients of OpenAI's API as people install them, each pointed at a server with the example model.

docs/clients.md is the table of what is tried here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clients.programs.cells import Task

REPOSITORY = Path(__file__).resolve().parents[2]
COLUMNS = ("chat", "stream", "completion", "evaluation")


@dataclass(frozen=True)
class Client:
    """A client and the cells that its program tells of.

    Args:
        title: its row in docs/clients.md.
        package: whose version counts.
        environment: a folder of .venv-clients.
        program: below programs/ or node/.
        cells: the functions of the program.
    """

    title: str
    package: str
    environment: str
    program: str
    cells: tuple[str, ...]


CHAT = ("chat", "stream")
TEXT = ("completion", "completion_stream")
OPENAI = (
    *(*CHAT, "stream_helper", *TEXT, "models", "choices", "logprobs"),
    *("evaluation", "extra_body", "names", "history"),
)
CLIENTS = (
    Client("openai", "openai", "newest", "use_openai.py", OPENAI),
    Client("openai, version 2", "openai", "openai2", "use_openai.py", OPENAI),
    Client(
        *("openai for Node", "openai", "newest", "use_openai.mjs"),
        (*CHAT, "stream_helper", *TEXT, "models", "evaluation"),
    ),
    Client("AI SDK, openai-compatible", "@ai-sdk/openai-compatible", "newest", "use_ai_sdk.mjs", CHAT + TEXT),
    Client(
        *("langchain-openai", "langchain-openai", "newest", "use_langchain.py"),
        (*CHAT, "batch", *TEXT, "history"),
    ),
    Client("litellm", "litellm", "newest", "use_litellm.py", (*CHAT, "hosted_vllm", *TEXT, "history")),
    Client(
        *("huggingface_hub", "huggingface-hub", "newest", "use_huggingface_hub.py"),
        ("chat", "chat_with_a_model", "stream"),
    ),
    Client("pydantic-ai", "pydantic-ai-slim", "newest", "use_pydantic_ai.py", CHAT),
    Client(
        *("AutoGen", "autogen-ext", "newest", "use_autogen.py"),
        (*CHAT, "agent", "agent_stream", "conversation"),
    ),
    Client("llama-index", "llama-index-llms-openai-like", "openai2", "use_llama_index.py", CHAT + TEXT),
    Client("llm", "llm", "newest", "use_llm.py", CHAT + TEXT),
    Client("GuideLLM", "guidellm", "newest", "use_guidellm.py", (*CHAT, "completion")),
    Client(
        "lm-eval", "lm-eval", "newest", "use_lm_eval.py", ("chat", "completion", "evaluation", "perplexity")
    ),
)
IN_CLIENTS = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.title)
IN_CELLS = pytest.mark.parametrize(
    ("client", "cell"),
    [
        pytest.param(client, cell, id=f"{client.title}: {cell}".replace("_", " "))
        for client in CLIENTS
        for cell in client.cells
    ],
)

Complete = Callable[..., dict[str, Any]]


def as_told(complete: Complete, task: Task, cell: str, result: dict[str, Any]) -> dict[str, Any]:
    """What the server says without a client to what a cell asked."""
    if cell.startswith("completion"):
        # Some clients write the prompt anew; they tell what they sent.
        sent = {name: result[name] for name in ("prompt", "stop") if result.get(name)}
        told = complete("/completions", **{"prompt": task.prompt, **sent})
        text = told["choices"][0]["text"]
    else:
        told = complete("/chat/completions", messages=[{"role": "user", "content": task.question}])
        text = told["choices"][0]["message"]["content"]
    return {
        "text": text,
        "finish_reason": told["choices"][0]["finish_reason"],
        "usage": [told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]],
    }


def check_answer(result: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected["text"]
    if "pieces" in result:
        assert sum(bool(piece) for piece in result["pieces"]) > 2
        assert "".join(result["pieces"]) == expected["text"]
    else:
        assert result["text"] == expected["text"]
    told = {name: result[name] for name in ("finish_reason", "usage") if result[name] is not None}
    assert told == {name: expected[name] for name in told}


def check_benchmark(result: dict[str, Any], cell: str, task: Task) -> None:
    assert (result["errors"], result["unfinished"]) == ([], 0)
    assert result["requests"] > 0
    assert result["output_tokens"] == [task.max_tokens] * result["requests"]
    if cell != "chat":  # it streams unless told otherwise
        assert all(latency_ms > 0 for latency_ms in result["first_token_ms"])


def check_likelihoods(complete: Complete, likelihoods: list[dict[str, Any]]) -> None:
    """A continuation of one token is as likely as the server says of its own next token."""
    for prompt in {case["prompt"] for case in likelihoods}:
        told = complete("/completions", prompt=prompt, max_tokens=1, logprobs=20)
        (likeliest,) = told["choices"][0]["logprobs"]["top_logprobs"]
        cases = {case["continuation"]: case for case in likelihoods if case["prompt"] == prompt}
        known = cases.keys() & likeliest.keys()
        assert known, (prompt, likeliest)
        for continuation in known:
            case = cases[continuation]
            assert case["logprob"] == pytest.approx(likeliest[continuation], abs=1e-3)
            assert case["is_greedy"] == (continuation == told["choices"][0]["text"])


@pytest.mark.clients
@pytest.mark.slow
@pytest.mark.timeout(420)  # a program's deadline, and the server's start
@IN_CELLS
def test_client(client: Client, cell: str, run_program: Any, task: Task, complete: Complete) -> None:
    told = run_program(client.environment, client.program)
    print(told.stderr[-4000:])  # for who reads of a failure: some clients tell the server's words only here
    assert told.results.keys() == set(client.cells)
    result = told.results[cell]

    if result is None:  # the program looked itself
        assert cell not in (*CHAT, *TEXT, "evaluation")
        return
    assert "error" not in result, result["error"]
    if "requests" in result:
        check_benchmark(result, cell, task)
    elif "numbers" in result:
        assert result["numbers"]
        assert all(math.isfinite(number) for number in result["numbers"])
        check_likelihoods(complete, result.get("likelihoods", []))
    else:
        check_answer(result, as_told(complete, task, cell, result))


def documented() -> dict[str, list[str]]:
    """The rows of the table in docs/clients.md: a client's title -> what stands beside it."""
    text = (REPOSITORY / "docs" / "clients.md").read_text()
    _, _, *lines = text.partition("| client |")[2].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {title: others for title, *others in rows}


def locked(client: Client) -> str:
    """The version that a client's lock file gives."""
    if client.program.endswith(".mjs"):
        lock = json.loads((REPOSITORY / "tests/clients/node/package-lock.json").read_text())
        version: str = lock["packages"][f"node_modules/{client.package}"]["version"]
        return version
    name = {"newest": "clients", "openai2": "clients-openai2"}[client.environment]
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text()
    match = re.search(rf"^{client.package}==(\S+)", text, re.MULTILINE)
    assert match is not None
    return match[1]


def test_the_documentation_has_every_client_that_is_run() -> None:
    assert documented().keys() == {client.title for client in CLIENTS}


@IN_CLIENTS
def test_the_documentation_says_what_is_run(client: Client) -> None:
    version, *cells, _ = documented()[client.title]
    assert version == locked(client)
    assert cells == ["yes" if column in client.cells else "none" for column in COLUMNS]
