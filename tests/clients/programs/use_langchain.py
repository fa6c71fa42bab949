"""LangChain's client of OpenAI's API."""

from __future__ import annotations

from typing import Any

import cells
from cells import answer, task
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI

SERVER: dict[str, Any] = {
    "base_url": task().base_url,
    "api_key": "unused",
    "model": task().model,
    "max_retries": 0,
}
SAMPLING: dict[str, Any] = {"temperature": 0, "seed": task().seed, "max_tokens": task().max_tokens}

chat_model = ChatOpenAI(**SERVER, **SAMPLING)
language_model = OpenAI(**SERVER, **SAMPLING)


def told(message: Any) -> dict[str, Any]:
    usage = message.usage_metadata
    return {
        "finish_reason": message.response_metadata["finish_reason"],
        "usage": (usage["input_tokens"], usage["output_tokens"]),
    }


def chat() -> dict[str, object]:
    message = chat_model.invoke(task().question)
    return answer(message.content, **told(message))


def stream() -> dict[str, object]:
    chunks = list(chat_model.stream(task().question, stream_usage=True))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return cells.stream([chunk.content for chunk in chunks], **told(whole))


def batch() -> None:
    once, again = chat_model.batch([task().question, task().question])
    assert once.content == again.content != ""


def completion() -> dict[str, object]:
    (generation,) = language_model.generate([task().prompt]).generations[0]
    return answer(generation.text, generation.generation_info["finish_reason"])


def completion_stream() -> dict[str, object]:
    return cells.stream(list(language_model.stream(task().prompt)))


def history() -> None:
    """A conversation in which another model called a tool."""
    call = {"name": "weather", "args": {"at": "Paris"}, "id": "call_1"}
    past = [
        HumanMessage("What is the weather in Paris?", name="ann"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("18 degrees", tool_call_id="call_1"),
        HumanMessage("So is it warm?"),
    ]
    assert chat_model.invoke(past).content


if __name__ == "__main__":
    cells.run(chat, stream, batch, completion, completion_stream, history)
