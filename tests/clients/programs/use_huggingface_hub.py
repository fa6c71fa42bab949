"""Hugging Face's InferenceClient, whose documentation names no model where it names a server."""

from __future__ import annotations

import os
from typing import Any

import cells
from cells import answer, task

# It would not even reach this machine's own server.
os.environ["HF_HUB_OFFLINE"] = "0"

from huggingface_hub import InferenceClient

MESSAGES = [{"role": "user", "content": task().question}]
SAMPLING: dict[str, Any] = {"temperature": 0, "seed": task().seed, "max_tokens": task().max_tokens}

client = InferenceClient(base_url=task().base_url)


def told(done: Any) -> dict[str, object]:
    (choice,) = done.choices
    usage = done.usage
    return answer(
        choice.message.content, choice.finish_reason, (usage.prompt_tokens, usage.completion_tokens)
    )


def chat() -> dict[str, object]:
    return told(client.chat_completion(MESSAGES, **SAMPLING))


def chat_with_a_model() -> dict[str, object]:
    named = InferenceClient(base_url=task().base_url, api_key="unused")
    return told(named.chat.completions.create(model=task().model, messages=MESSAGES, **SAMPLING))


def stream() -> dict[str, object]:
    chunks = list(client.chat_completion(MESSAGES, stream=True, **SAMPLING))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    return cells.stream(pieces, chunks[-1].choices[0].finish_reason)


if __name__ == "__main__":
    cells.run(chat, chat_with_a_model, stream)
