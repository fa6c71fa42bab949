"""AutoGen's client, and its agent, which names every message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import cells
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import ModelClientStreamingChunkEvent
from autogen_core.models import CreateResult, ModelFamily, ModelInfo, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from cells import answer, task

INFO = ModelInfo(
    vision=False,
    function_calling=False,
    json_output=False,
    family=ModelFamily.UNKNOWN,
    structured_output=False,
)


@asynccontextmanager
async def client() -> AsyncIterator[Any]:
    opened = OpenAIChatCompletionClient(
        model=task().model,
        base_url=task().base_url,
        api_key="unused",
        model_info=INFO,
        temperature=0,
        seed=task().seed,
        max_tokens=task().max_tokens,
        max_retries=0,
    )
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def assistant(**options: Any) -> AsyncIterator[Any]:
    async with client() as opened:
        yield AssistantAgent("assistant", model_client=opened, **{"system_message": None, **options})


def told(result: Any) -> dict[str, Any]:
    usage = result.usage
    return {"finish_reason": result.finish_reason, "usage": (usage.prompt_tokens, usage.completion_tokens)}


async def chat() -> dict[str, object]:
    async with client() as opened:
        result = await opened.create([UserMessage(content=task().question, source="user")])
    return answer(result.content, **told(result))


async def stream() -> dict[str, object]:
    async with client() as opened:
        said = opened.create_stream(
            [UserMessage(content=task().question, source="user")],
            extra_create_args={"stream_options": {"include_usage": True}},
        )
        *pieces, result = [piece async for piece in said]
    assert isinstance(result, CreateResult)
    assert result.content == "".join(pieces)
    return cells.stream(pieces, **told(result))


async def agent() -> dict[str, object]:
    async with assistant() as asked:
        result = await asked.run(task=task().question)
    return answer(result.messages[-1].content)


async def agent_stream() -> dict[str, object]:
    async with assistant(model_client_stream=True) as asked:
        events = [event async for event in asked.run_stream(task=task().question)]
    return cells.stream(
        [event.content for event in events if isinstance(event, ModelClientStreamingChunkEvent)]
    )


async def conversation() -> None:
    """A second question: the agent's own answer comes back under the agent's name."""
    async with assistant(system_message="Be brief.") as asked:
        await asked.run(task=task().question)
        result = await asked.run(task="And why?")
    assert result.messages[-1].content


if __name__ == "__main__":
    cells.run(chat, stream, agent, agent_stream, conversation)
