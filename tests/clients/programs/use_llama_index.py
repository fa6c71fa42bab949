"""LlamaIndex's client for servers with OpenAI's API."""

from __future__ import annotations

from typing import Any

import cells
from cells import answer, task
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike


def model(is_chat_model: bool) -> Any:
    return OpenAILike(
        model=task().model,
        api_base=task().base_url,
        api_key="unused",
        is_chat_model=is_chat_model,
        temperature=0,
        max_tokens=task().max_tokens,
        max_retries=0,
        additional_kwargs={"seed": task().seed},
    )


MESSAGES = [ChatMessage(role="user", content=task().question)]


def told(raw: Any) -> dict[str, Any]:
    (choice,) = raw.choices
    return {
        "finish_reason": choice.finish_reason,
        "usage": (raw.usage.prompt_tokens, raw.usage.completion_tokens),
    }


def chat() -> dict[str, object]:
    done = model(is_chat_model=True).chat(MESSAGES)
    return answer(done.message.content, **told(done.raw))


def stream() -> dict[str, object]:
    return cells.stream([chunk.delta or "" for chunk in model(is_chat_model=True).stream_chat(MESSAGES)])


def completion() -> dict[str, object]:
    done = model(is_chat_model=False).complete(task().prompt)
    return answer(done.text, **told(done.raw))


def completion_stream() -> dict[str, object]:
    return cells.stream(
        [chunk.delta or "" for chunk in model(is_chat_model=False).stream_complete(task().prompt)]
    )


if __name__ == "__main__":
    cells.run(chat, stream, completion, completion_stream)
