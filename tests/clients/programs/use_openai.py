"""OpenAI's own client for Python."""

from __future__ import annotations

import cells
from cells import answer, task
from openai import OpenAI
from openai.types import CompletionUsage

client = OpenAI(base_url=task().base_url, api_key="unused", max_retries=0)
MESSAGES: list[object] = [{"role": "user", "content": task().question}]
SAMPLING = {"temperature": 0, "seed": task().seed, "max_tokens": task().max_tokens}


def counts(usage: CompletionUsage | None) -> tuple[int, int]:
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return usage.prompt_tokens, usage.completion_tokens


def chat() -> dict[str, object]:
    done = client.chat.completions.create(model=task().model, messages=MESSAGES, **SAMPLING)
    (choice,) = done.choices
    return answer(choice.message.content, choice.finish_reason, counts(done.usage))


def stream() -> dict[str, object]:
    chunks = list(
        client.chat.completions.create(
            model=task().model,
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            **SAMPLING,
        )
    )
    *said, ended, told = chunks
    pieces = [chunk.choices[0].delta.content or "" for chunk in [*said, ended]]
    return cells.stream(pieces, ended.choices[0].finish_reason, counts(told.usage))


def stream_helper() -> dict[str, object]:
    with client.chat.completions.stream(model=task().model, messages=MESSAGES, **SAMPLING) as events:
        pieces = [event.delta for event in events if event.type == "content.delta"]
        (choice,) = events.current_completion_snapshot.choices  # the final one is refused at its limit
    assert choice.message.content == "".join(pieces)
    return cells.stream(pieces, choice.finish_reason)


def completion() -> dict[str, object]:
    done = client.completions.create(model=task().model, prompt=task().prompt, **SAMPLING)
    (choice,) = done.choices
    return answer(choice.text, choice.finish_reason, counts(done.usage))


def completion_stream() -> dict[str, object]:
    chunks = list(
        client.completions.create(model=task().model, prompt=task().prompt, stream=True, **SAMPLING)
    )
    return cells.stream([chunk.choices[0].text for chunk in chunks], chunks[-1].choices[0].finish_reason)


def models() -> None:
    assert [model.id for model in client.models.list()] == [task().model]
    assert client.models.retrieve(task().model).id == task().model


def choices() -> None:
    drawn = {
        "model": task().model,
        "messages": MESSAGES,
        "n": 2,
        "seed": 7,
        "max_tokens": 8,
        "temperature": 1,
    }
    texts = [
        [choice.message.content for choice in client.chat.completions.create(**drawn).choices]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


def logprobs() -> None:
    done = client.chat.completions.create(
        model=task().model, messages=MESSAGES, logprobs=True, top_logprobs=2, **SAMPLING
    )
    (choice,) = done.choices
    assert choice.logprobs is not None
    told = choice.logprobs.content
    assert told is not None
    assert "".join(token.token for token in told) == choice.message.content
    assert all(token.logprob == token.top_logprobs[0].logprob <= 0 for token in told)
    assert all(len(token.top_logprobs) == 2 for token in told)


def evaluation() -> dict[str, object]:
    """The prompt's log-probabilities: what evaluations are computed from."""
    done = client.completions.create(
        model=task().model, prompt=task().prompt, echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    (choice,) = done.choices
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert choice.text.startswith(task().prompt)
    assert "".join(told.tokens) == choice.text
    assert told.token_logprobs[0] is None  # nothing stands before the first token
    numbers = told.token_logprobs[1:]
    assert all(number <= 0 for number in numbers)
    return {"numbers": [sum(numbers[:-1])]}


def extra_body() -> dict[str, object]:
    """Fields that OpenAI's API does not have: those of other servers, and one of nobody's."""
    fields = {"top_k": 1, "min_p": 0.0, "repetition_penalty": 1.0, "no_such_field": {"of": "a plugin"}}
    raw = client.chat.completions.with_raw_response.create(
        model=task().model,
        messages=MESSAGES,
        extra_body=fields,
        extra_headers={"x-title": "clients"},
        extra_query={"version": "1"},
        **{**SAMPLING, "temperature": 1},
    )
    assert raw.headers["x-stoker-ignored"] == "no_such_field"
    done = raw.parse()
    (choice,) = done.choices
    return answer(choice.message.content, choice.finish_reason, counts(done.usage))


def names() -> dict[str, object]:
    """A name for each message, as agents give them; the template does not read it."""
    named = [{"role": "user", "name": "ann", "content": task().question}]
    done = client.chat.completions.create(model=task().model, messages=named, **SAMPLING)
    return answer(done.choices[0].message.content, done.choices[0].finish_reason, counts(done.usage))


def history() -> None:
    """A conversation that another server had: tool calls, null contents, reasoning, ids, cache marks."""
    past = [
        {
            "role": "system",
            "content": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        },
        {"role": "user", "content": "What is the weather in Paris?", "name": "ann", "id": "msg_1"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "I should look.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"at":"Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees"},
        {"role": "user", "content": "So is it warm?"},
    ]
    done = client.chat.completions.create(model=task().model, messages=past, **SAMPLING)
    assert done.choices[0].message.content


if __name__ == "__main__":
    cells.run(
        chat,
        stream,
        stream_helper,
        completion,
        completion_stream,
        models,
        choices,
        logprobs,
        evaluation,
        extra_body,
        names,
        history,
    )
