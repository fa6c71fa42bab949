"""LiteLLM, by its provider for any server with OpenAI's API and by the one for vLLM."""

from __future__ import annotations

from typing import Any

import cells
import litellm
from cells import answer, task

litellm.telemetry = False
litellm.suppress_debug_info = True

MESSAGES = [{"role": "user", "content": task().question}]
OPTIONS: dict[str, Any] = {
    "api_base": task().base_url,
    "api_key": "unused",
    "temperature": 0,
    "seed": task().seed,
    "max_tokens": task().max_tokens,
    "num_retries": 0,
}


def counts(usage: Any) -> tuple[int, int]:
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return usage.prompt_tokens, usage.completion_tokens


def chat() -> dict[str, object]:
    done = litellm.completion(model=f"openai/{task().model}", messages=MESSAGES, **OPTIONS)
    (choice,) = done.choices
    return answer(choice.message.content, choice.finish_reason, counts(done.usage))


def hosted_vllm() -> dict[str, object]:
    done = litellm.completion(model=f"hosted_vllm/{task().model}", messages=MESSAGES, **OPTIONS)
    (choice,) = done.choices
    return answer(choice.message.content, choice.finish_reason, counts(done.usage))


def stream() -> dict[str, object]:
    *chunks, told = litellm.completion(
        model=f"openai/{task().model}",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        **OPTIONS,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    return cells.stream(pieces, chunks[-1].choices[0].finish_reason, counts(told.usage))


def completion() -> dict[str, object]:
    done = litellm.text_completion(
        model=f"text-completion-openai/{task().model}", prompt=task().prompt, **OPTIONS
    )
    (choice,) = done.choices
    return answer(choice.text, choice.finish_reason, counts(done.usage))


def completion_stream() -> dict[str, object]:
    chunks = litellm.text_completion(
        model=f"text-completion-openai/{task().model}", prompt=task().prompt, stream=True, **OPTIONS
    )
    return cells.stream([chunk.choices[0].text or "" for chunk in chunks])


def history() -> None:
    """A conversation in which another model called a tool; the call's message has no content at all."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"at":"Paris"}'},
    }
    past = [
        {"role": "user", "content": "What is the weather in Paris?", "name": "ann"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "18 degrees"},
        {"role": "user", "content": "So is it warm?"},
    ]
    done = litellm.completion(model=f"openai/{task().model}", messages=past, **OPTIONS)
    assert done.choices[0].message.content


if __name__ == "__main__":
    cells.run(chat, hosted_vllm, stream, completion, completion_stream, history)
