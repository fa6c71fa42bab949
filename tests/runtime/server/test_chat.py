from __future__ import annotations

from typing import Any

import pytest
from server_builders import make_assets
from server_engine import FakeEngine, Stack, events_of, make_ready, make_server_config, running_stack

HI = [{"role": "user", "content": "hi"}]


async def post(stack: Stack, **fields: Any) -> Any:
    response = await stack.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def stream(stack: Stack, **fields: Any) -> list[Any]:
    body = {"model": "tiny", "messages": HI, "stream": True, **fields}
    response = await stack.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return list(events_of(response.text))


def deltas(events: list[Any], index: int = 0) -> list[Any]:
    return [c["delta"] for event in events[:-1] for c in event["choices"] if c["index"] == index]


async def test_an_answer_in_one_piece() -> None:
    async with running_stack() as stack:
        stack.say("Hello w\u00f6rld")

        answer = await post(stack)

    prompt = "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    num_prompt_tokens = len(stack.ids(prompt))
    assert stack.engine.added[0].prompt_token_ids == stack.ids(prompt)
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") >= stack.serving.started_at
    assert answer.pop("system_fingerprint").startswith("stoker-")
    assert answer == {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello w\u00f6rld", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": 13,
            "total_tokens": num_prompt_tokens + 13,
            "prompt_tokens_details": {"cached_tokens": num_prompt_tokens // 2},
        },
    }


async def test_a_stream_opens_with_the_role_and_ends_with_reason_and_done() -> None:
    async with running_stack() as stack:
        stack.say("\u00e9a")

        events = await stream(stack)

    assert events[-1] == "[DONE]"
    assert deltas(events) == [
        {"role": "assistant", "content": ""},
        {"content": "\u00e9"},
        {"content": "a"},
        {},
    ]
    reasons = [event["choices"][0]["finish_reason"] for event in events[:-1]]
    assert reasons == [None, None, None, "stop"]
    assert len({event["id"] for event in events[:-1]}) == 1
    assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk"}
    assert all("usage" not in event for event in events[:-1])


async def test_usage_comes_last_when_asked_for_and_is_null_before() -> None:
    async with running_stack() as stack:
        stack.say("ab")

        events = await stream(stack, stream_options={"include_usage": True})

    assert [event["usage"] for event in events[:-2]] == [None] * len(events[:-2])
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("is_stream", [False, True])
async def test_each_of_n_choices_has_its_own_text(is_stream: bool) -> None:
    async with running_stack() as stack:
        stack.say("one", "two!", "three")

        if is_stream:
            events = await stream(stack, n=3, seed=5)
            texts = ["".join(delta.get("content", "") for delta in deltas(events, i)) for i in range(3)]
        else:
            answer = await post(stack, n=3, seed=5)
            assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
            texts = [choice["message"]["content"] for choice in answer["choices"]]

    assert texts == ["one", "two!", "three"]
    assert [request.sampling.seed for request in stack.engine.added] == [5, 6, 7]


async def test_a_stop_string_ends_the_answer_and_frees_the_engine() -> None:
    async with running_stack() as stack:
        stack.say("one two three")

        answer = await post(stack, stop=["two"])
        await stack.engine.until(lambda: bool(stack.engine.aborted))

    assert answer["choices"][0]["message"]["content"] == "one "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert stack.engine.aborted == [stack.engine.added[0].request_id]


async def test_a_stop_string_of_one_choice_leaves_the_others() -> None:
    async with running_stack() as stack:
        stack.say("one.two", "three")

        answer = await post(stack, n=2, stop=".")

    assert [choice["message"]["content"] for choice in answer["choices"]] == ["one", "three"]


async def test_log_probabilities_name_tokens_with_their_bytes() -> None:
    async with running_stack() as stack:
        stack.say("\u00e9")

        answer = await post(stack, logprobs=True, top_logprobs=2)

    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9]]
    assert [entry["token"] for entry in content] == ["\ufffd", "\ufffd"]
    assert [len(entry["top_logprobs"]) for entry in content] == [2, 2]
    assert content[0]["logprob"] == content[0]["top_logprobs"][0]["logprob"] == -0.5


async def test_streamed_log_probabilities_cover_the_same_tokens() -> None:
    async with running_stack() as stack:
        stack.say("a\u00e9")

        events = await stream(stack, logprobs=True)

    choices = [event["choices"][0] for event in events[:-1]]
    shown = [(c["delta"].get("content"), len(c["logprobs"]["content"])) for c in choices if c["logprobs"]]
    assert shown == [("a", 1), ("\u00e9", 2)]


async def test_text_parts_are_one_text_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    async with running_stack() as stack:
        messages = [{"role": "developer", "content": parts}]
        await post(stack, messages=messages, max_tokens=1)

    want = "<|start|>system\na\nb<|end|>\n<|start|>assistant\n"
    assert stack.engine.added[0].prompt_token_ids == stack.ids(want)


async def test_values_that_ask_for_nothing_are_accepted() -> None:
    assistant: dict[str, Any] = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
    }
    async with running_stack() as stack:
        await post(
            stack,
            messages=[assistant, *HI],
            tools=[],
            tool_choice="none",
            response_format={"type": "text"},
            modalities=["text"],
            store=False,
            metadata={"a": "b"},
            user="ann",
            service_tier="auto",
            prompt_cache_retention="in-memory",
            parallel_tool_calls=True,
            temperature=None,
            stop=None,
            stream=None,
            stream_options=None,
            logit_bias=None,
            chat_template_kwargs=None,
            max_tokens=1,
        )


async def test_without_a_limit_the_answer_may_fill_the_models_length() -> None:
    async with running_stack() as stack:
        await post(stack)
        prompt = stack.engine.added[0]

    assert prompt.sampling.max_tokens == 256 - len(prompt.prompt_token_ids)


async def test_a_kv_cache_smaller_than_the_model_limits_requests() -> None:
    engine = FakeEngine(ready=make_ready(num_blocks=2, block_size=16))
    async with running_stack(engine) as stack:
        await post(stack)
        response = await stack.http.post(
            "/v1/completions", json={"model": "tiny", "prompt": "x" * 32, "max_tokens": 1}
        )

    assert engine.added[0].sampling.max_tokens == 32 - 21
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_any_served_name_is_taken_and_the_first_is_answered() -> None:
    async with running_stack(config=make_server_config(served_model_names=("a", "b"))) as stack:
        answer = await post(stack, model="b", max_tokens=1)

    assert answer["model"] == "a"


async def test_a_model_without_a_template_says_so() -> None:
    async with running_stack(assets=make_assets(chat_template=None)) as stack:
        response = await stack.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI})

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "no_chat_template"
    assert "/v1/completions" in response.json()["error"]["message"]


async def test_a_broken_template_leaves_completions_working() -> None:
    async with running_stack(assets=make_assets(chat_template="{% nonsense %}")) as stack:
        chat = await stack.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI})
        completion = await stack.http.post("/v1/completions", json={"model": "tiny", "prompt": "a"})

    assert (chat.status_code, completion.status_code) == (400, 200)
    assert "nonsense" in chat.json()["error"]["message"]


async def test_the_models_defaults_reach_the_engine() -> None:
    async with running_stack(assets=make_assets(generation_defaults={"temperature": 0.2})) as stack:
        await post(stack, max_tokens=1)

    assert stack.engine.added[0].sampling.temperature == 0.2


async def test_cache_salt_reaches_the_engine() -> None:
    async with running_stack() as stack:
        await post(stack, max_tokens=1, cache_salt="tenant")

    assert stack.engine.added[0].cache_salt == "tenant"


async def test_priority_reaches_the_engine() -> None:
    async with running_stack() as stack:
        await post(stack, max_tokens=1, priority=-3)
        await post(stack, max_tokens=1)

    assert [request.priority for request in stack.engine.added] == [-3, 0]


async def test_template_arguments_reach_the_template() -> None:
    template = "{{ messages[0].content }}{% if shout %}!{% endif %}"
    async with running_stack(assets=make_assets(chat_template=template)) as stack:
        await post(stack, max_tokens=1, chat_template_kwargs={"shout": True})

    assert stack.engine.added[0].prompt_token_ids == stack.ids("hi!")
