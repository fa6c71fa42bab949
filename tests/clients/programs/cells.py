"""What the client programs share: the task that they are given, and how they tell what came.

A program is given a task as JSON and runs one function for each cell that tests/clients/test_clients.py
names. Its last line is JSON of what each returned: an `answer`, a `stream` of pieces, numbers, or an
error's traceback.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Task:
    """What every client asks, so that every client is told the same.

    Args:
        base_url: of the API, without a slash at its end; the paths `/chat/completions` and so on follow.
        model: the name that the server gives it.
        question: what a user's message says.
        prompt: what a completion begins with.
        max_tokens: of an answer.
        seed: of the sampling, at temperature 0.
        tokenizer: a folder with the model's tokenizer, as Hugging Face's libraries read it.
        folder: where a program may write.
    """

    base_url: str
    model: str
    question: str
    prompt: str
    max_tokens: int
    seed: int
    tokenizer: str
    folder: str

    @property
    def root_url(self) -> str:
        """The server's address without the API's version."""
        return self.base_url.removesuffix("/v1")


@cache
def task() -> Task:
    """The task in this program's first argument."""
    return Task(**json.loads(sys.argv[1]))


def answer(
    text: str | None, finish_reason: str | None = None, usage: tuple[int, int] | None = None
) -> dict[str, object]:
    """A whole answer; what a client does not tell is None.

    Args:
        text: what the model said.
        finish_reason: why it ended.
        usage: tokens of the prompt and of the answer.
    """
    return {"text": text, "finish_reason": finish_reason, "usage": usage}


def stream(
    pieces: Sequence[str], finish_reason: str | None = None, usage: tuple[int, int] | None = None
) -> dict[str, object]:
    """A streamed answer; see `answer`."""
    return {"pieces": list(pieces), "finish_reason": finish_reason, "usage": usage}


def run(*cells: Callable[[], Any]) -> None:
    """Run each cell and print what came; one that fails leaves the others to be told."""
    results: dict[str, object] = {}
    for cell in cells:
        try:
            result = cell()
            results[cell.__name__] = asyncio.run(result) if inspect.iscoroutine(result) else result
        except Exception:
            results[cell.__name__] = {"error": traceback.format_exc()}
    print(json.dumps(results))
