from __future__ import annotations

from typing import Any

import pytest
from server_engine import FakeEngine, Stack, events_of, running_stack


async def post(stack: Stack, **fields: Any) -> Any:
    response = await stack.http.post("/v1/completions", json={"model": "tiny", "prompt": "a", **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_completion_in_one_piece() -> None:
    async with running_stack() as stack:
        stack.say("bcd")

        answer = await post(stack)

    assert answer.pop("id").startswith("cmpl-")
    del answer["created"], answer["system_fingerprint"]
    assert answer == {
        "object": "text_completion",
        "model": "tiny",
        "choices": [{"index": 0, "text": "bcd", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 4,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_a_stream_of_a_completion() -> None:
    async with running_stack() as stack:
        stack.say("bc")

        response = await stack.http.post(
            "/v1/completions", json={"model": "tiny", "prompt": "a", "stream": True}
        )

    events: list[Any] = events_of(response.text)
    assert [(e["choices"][0]["text"], e["choices"][0]["finish_reason"]) for e in events[:-1]] == [
        ("b", None),
        ("c", None),
        ("", "stop"),
    ]
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        pytest.param("ab", ["ab"], id="text"),
        pytest.param(["ab", "c"], ["ab", "c"], id="texts"),
        pytest.param([65, 66], ["bc"], id="tokens"),
        pytest.param([[65], [66, 67]], ["b", "cd"], id="lists-of-tokens"),
    ],
)
async def test_every_form_of_prompt_is_answered_in_order(prompt: object, want: list[str]) -> None:
    async with running_stack() as stack:
        answer = await post(stack, prompt=prompt)

    assert [choice["text"] for choice in answer["choices"]] == want
    assert answer["usage"]["prompt_tokens"] == sum(len(text) for text in want)


async def test_choices_of_several_prompts_are_numbered_prompt_by_prompt() -> None:
    async with running_stack() as stack:
        answer = await post(stack, prompt=["a", "b"], n=2)

    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]


async def test_log_probabilities_are_parallel_lists() -> None:
    async with running_stack() as stack:
        stack.say("bc")

        answer = await post(stack, logprobs=2)

    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["b", "c"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"b": -0.5, "c": -1.5}, {"c": -0.5, "d": -1.5}],
        "text_offset": [0, 1],
    }


async def test_without_top_log_probabilities_the_token_itself_is_named() -> None:
    async with running_stack() as stack:
        stack.say("b")

        answer = await post(stack, logprobs=0)

    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{"b": -0.5}]


async def test_sixteen_tokens_are_the_default() -> None:
    async with running_stack() as stack:
        stack.say("x" * 40)

        answer = await post(stack)

    assert answer["choices"][0] == {
        "index": 0,
        "text": "x" * 16,
        "logprobs": None,
        "finish_reason": "length",
    }


async def test_stop_token_ids_end_the_text_before_them() -> None:
    async with running_stack() as stack:
        stack.say("abc")

        answer = await post(stack, stop_token_ids=stack.ids("c"))

    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("ab", "stop")


async def test_end_of_sequence_can_be_ignored_and_special_tokens_shown() -> None:
    async with running_stack() as stack:
        stack.engine.reply = lambda request: [*stack.ids("a<|end|>b"), 257]

        answer = await post(stack, ignore_eos=True, skip_special_tokens=False, max_tokens=3)

    assert answer["choices"][0]["text"] == "a<|end|>b"


async def test_a_stop_string_may_be_part_of_the_text() -> None:
    async with running_stack() as stack:
        stack.say("one. two.")

        answer = await post(stack, stop=".", include_stop_str_in_output=True)

    assert answer["choices"][0]["text"] == "one."


async def test_values_that_ask_for_nothing_are_accepted() -> None:
    async with running_stack() as stack:
        await post(stack, echo=False, suffix=None, best_of=2, n=2, logprobs=None, max_tokens=1)


async def test_an_engine_error_is_a_500_with_its_reason() -> None:
    engine = FakeEngine(errors={0: "logits are not finite"})
    async with running_stack(engine) as stack:
        response = await stack.http.post("/v1/completions", json={"model": "tiny", "prompt": "a"})

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "generation_failed"
    assert "logits are not finite" in response.json()["error"]["message"]


async def test_an_error_of_one_choice_gives_up_the_others() -> None:
    engine = FakeEngine(errors={1: "broken"}, reply=lambda request: [65] * 200)
    async with running_stack(engine) as stack:
        response = await stack.http.post(
            "/v1/completions", json={"model": "tiny", "prompt": ["a", "b", "c"], "max_tokens": 200}
        )
        await engine.until(lambda: engine.num_live == 0)

    assert response.status_code == 500
    assert len(engine.added) == 3
