"""Pydantic AI's agent."""

from __future__ import annotations

from typing import Any

import cells
from cells import answer, task
from pydantic_ai import Agent, ModelSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

SAMPLING = ModelSettings(temperature=0, seed=task().seed, max_tokens=task().max_tokens)


def agent() -> Any:
    provider = OpenAIProvider(base_url=task().base_url, api_key="unused")
    return Agent(OpenAIChatModel(task().model, provider=provider), model_settings=SAMPLING)


def told(result: Any) -> dict[str, Any]:
    usage, response = result.usage, result.response
    return {"finish_reason": response.finish_reason, "usage": (usage.input_tokens, usage.output_tokens)}


async def chat() -> dict[str, object]:
    result = await agent().run(task().question)
    return answer(result.output, **told(result))


async def stream() -> dict[str, object]:
    async with agent().run_stream(task().question) as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
        return cells.stream(pieces, **told(result))


if __name__ == "__main__":
    cells.run(chat, stream)
