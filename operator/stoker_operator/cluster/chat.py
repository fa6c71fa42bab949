"""Asks a served model one question, as any client would: through its Service."""

from __future__ import annotations

from typing import Any

import aiohttp

ANSWER_WITHIN_S = 60.0
MAX_TOKENS = 32


class ChatFailed(Exception):
    """No answer; the text says what came instead."""


class ChatRefused(ChatFailed):
    """The server does not take the request, and would not take it again."""


async def ask(url: str, model: str, question: str) -> str:
    """Return the answer of a model.

    Args:
        url: of the server, without a path.
        model: name to ask for.
        question: the only message.

    Raises:
        ChatRefused: a status from 400 to 499.
        ChatFailed: no connection, another status, or an answer without text; it may be tried again.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    where = f"{url}/v1/chat/completions"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)) as session,
            session.post(where, json=body) as response,
        ):
            text = await response.text()
            if response.status != 200:
                kind = ChatRefused if 400 <= response.status < 500 else ChatFailed
                raise kind(f"{where} answered {response.status}: {text[:500]}")
            answer = _content(await response.json())
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise ChatFailed(f"{where}: {type(error).__name__}: {error}") from error
    if not answer.strip():
        raise ChatFailed(f"{where} answered without text: {text[:500]}")
    return answer


def _content(completion: Any) -> str:
    """Read a chat completion; raises ValueError when it is something else."""
    try:
        content = completion["choices"][0]["message"]["content"]
    except (LookupError, TypeError) as error:
        raise ValueError("not a chat completion") from error
    return content if isinstance(content, str) else ""
