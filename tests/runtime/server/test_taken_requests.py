"""Requests that clients of other servers send, over HTTP: each is answered, and what is ignored is named.

The rows are those of two reports of November 2026: peers' own test suites run against this server, and public
bug reports tried on it.
"""

from __future__ import annotations

from typing import Any

import pytest
from server_builders import make_assets
from server_engine import Stack, running_stack

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL_HISTORY = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
]
# Sliders as SillyTavern and text-generation-webui send them untouched.
SLIDERS = {
    "temperature": 1,
    "top_k": 0,
    "top_p": 1,
    "typical_p": 1,
    "typical": 1,
    "min_p": 0,
    "top_a": 0,
    "tfs": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "rep_pen": 1,
    "repetition_penalty": 1,
    "repetition_penalty_range": 0,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "penalty_alpha": 0,
    "num_beams": 1,
    "length_penalty": 1,
    "early_stopping": False,
    "guidance_scale": 1,
    "negative_prompt": "",
    "grammar_string": "",
    "banned_tokens": "",
    "add_bos_token": True,
    "ban_eos_token": False,
    "skip_special_tokens": True,
    "mirostat_mode": 0,
    "mirostat_tau": 5,
    "mirostat_eta": 0.1,
    "smoothing_factor": 0,
    "dynamic_temperature": False,
    "dry_multiplier": 0,
    "xtc_probability": 0,
    "xtc_threshold": 0.1,
    "seed": -1,
}


def chat(**fields: object) -> dict[str, object]:
    return {"model": "tiny", "messages": HI, "max_tokens": 1, **fields}


def message(**fields: object) -> dict[str, object]:
    return chat(messages=[{**HI[0], **fields}])


def row(name: str, body: object, *ignored: str, path: str = CHAT) -> Any:
    return pytest.param(path, body, ignored, id=name)


ROWS = [
    # "Wrong or unhelpful", by its numbers
    row("1-max-tokens-of-the-models-length", chat(max_tokens=256)),
    row("2-name", message(name="ann"), "messages[].name"),
    row(
        "3-continuous-usage",
        chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}),
    ),
    row("4-stops", chat(stop=[str(number) for number in range(100)])),
    row(
        "5-no-thinking",
        chat(chat_template_kwargs={"enable_thinking": False}),
        "chat_template_kwargs.enable_thinking",
    ),
    row("6-cache-control", message(cache_control={"type": "ephemeral"}), "messages[].cache_control"),
    row("6-id", message(id=5), "messages[].id"),
    row("6-extra", message(extra_field="x"), "messages[].extra_field"),
    row(
        "6-reasoning",
        chat(messages=[*HI, {"role": "assistant", "content": "a", "reasoning_content": "hm"}, *HI]),
        "messages[].reasoning_content",
    ),
    row(
        "6-part-fields",
        message(content=[{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]),
        "messages[].content[].cache_control",
    ),
    row("7-effort-none", chat(reasoning_effort="none", verbosity="medium")),
    row("7-effort-high", chat(reasoning_effort="high", verbosity="low"), "reasoning_effort", "verbosity"),
    row("7-top-logprobs", chat(logprobs=False, top_logprobs=0)),
    row(
        "7-neutral", chat(typical_p=1, repeat_penalty=1.0, mirostat=0, echo=False, best_of=1, detokenize=True)
    ),
    row("7-cache-prompt", chat(cache_prompt=True), "cache_prompt"),
    row("7-special-spaces", chat(spaces_between_special_tokens=False)),
    row(
        "7-reasoning-switches",
        chat(include_reasoning=True, separate_reasoning=False),
        "include_reasoning",
        "separate_reasoning",
    ),
    row("7-add-special-tokens", {"prompt": "a", "add_special_tokens": True}, path=COMPLETION),
    row("7-tokenize-tools", {"messages": HI, "tools": []}, path="/tokenize"),
    row(
        "7-sliders",
        chat(**SLIDERS),
        *("typical", "rep_pen", "repetition_penalty_range", "length_penalty", "early_stopping"),
        *(
            "grammar_string",
            "banned_tokens",
            "add_bos_token",
            "mirostat_tau",
            "mirostat_eta",
            "xtc_threshold",
        ),
    ),
    row("8-tool-history", chat(messages=TOOL_HISTORY), "messages[].tool_calls", "messages[].tool_call_id"),
    row(
        "8-tool-history-of-litellm",
        chat(messages=[TOOL_HISTORY[0], {"role": "assistant", "tool_calls": [CALL]}, TOOL_HISTORY[2]]),
        *("messages[].tool_calls", "messages[].tool_call_id"),
    ),
    row("8-content-null", message(content=None)),
    row("8-content-empty", message(content=[])),
    row("9-no-model", {"messages": HI, "max_tokens": 1}),
    row("9-empty-model", chat(model="")),
    row("9-model-of-huggingface-hub", chat(model="dummy")),
    row("9-no-model-completion", {"prompt": "a"}, path=COMPLETION),
    row("10-nulls", chat(best_of=None, colour=None, tools=None, stream_options=None)),
    row("10-null-option", chat(stream=True, stream_options={"continuous_usage_stats": None, "x": None})),
    row("11-no-limit", chat(max_tokens=-1)),
    row("11-hot", chat(temperature=2.5)),
    row("13-custom-role", message(role="critic")),
    row("13-function", message(role="function", name="f"), "messages[].name"),
    # "What failed", by its numbers
    row("F2-in-a-message", chat(messages=[{"role": "user", "content": "hi", "id": 5}]), "messages[].id"),
    row(
        "F2-in-the-body",
        chat(request_id="1", keep_alive="5m", thinking={"type": "enabled"}, return_token_ids=True),
        *("request_id", "keep_alive", "thinking"),
    ),
    row("F4-empty-name", message(name="")),
    row("F5-tools-left-aside", chat(tools=[{"type": "function"}], tool_choice="none"), "tools"),
    row("F6-generous-limit", message(content="a" * 31) | {"max_tokens": 256}),
    row("F7-minus-one", chat(max_tokens=-1)),
    row("F9-stops", chat(stop=["a", "b", "c", "d", "e", "f" * 300])),
    row("F11-random-seed", chat(seed=-1)),
    row(
        "F20-output-text",
        chat(messages=[*HI, {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}]),
    ),
    row(
        "F20-refusal",
        chat(messages=[*HI, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]),
    ),
    row(
        "F21-prefill",
        chat(
            messages=[*HI, {"role": "assistant", "content": "Hi,"}],
            continue_final_message=True,
            add_generation_prompt=False,
        ),
    ),
    row(
        "F23-kwargs",
        chat(chat_template_kwargs={"enable_thinking": False}),
        "chat_template_kwargs.enable_thinking",
    ),
    row("F24-echo", {"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 1}, path=COMPLETION),
    row("F24-no-answer", {"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 0}, path=COMPLETION),
    # siblings
    row(
        "completion-of-a-chats-body",
        {"prompt": "a", "messages": HI, "response_format": None},
        "messages",
        path=COMPLETION,
    ),
    row("detokenize-more", {"tokens": [64], "skip": True}, "skip", path="/detokenize"),
    row("bad-words", chat(bad_words=["cat"], allowed_token_ids=[64, 65])),
    row("truncated", message(content="a" * 1000) | {"truncate_prompt_tokens": 5}),
    row("odd-names", chat(**{"a b\r\nx: 1": 1, "\u00e9": 2}), "a%20b%0D%0Ax%3A%201", "%C3%A9"),
]


@pytest.mark.parametrize(("path", "body", "ignored"), ROWS)
async def test_a_request_is_answered_and_what_is_ignored_is_named(
    path: str, body: object, ignored: tuple[str, ...]
) -> None:
    async with running_stack() as stack:
        response = await stack.http.post(path, json=body)

    assert response.status_code == 200, response.text
    named = response.headers.get("x-stoker-ignored", "")
    assert [name.strip() for name in named.split(",") if name] == list(ignored)
    assert stack.serving.in_flight == 0


async def prompt_of(stack: Stack, **fields: Any) -> str:
    response = await stack.http.post(CHAT, json=chat(**fields))
    assert response.status_code == 200, response.text
    return stack.assets.tokenizer.decode(stack.engine.added[-1].prompt_token_ids, skip_special_tokens=False)


async def test_a_limit_is_cut_to_what_the_prompt_leaves() -> None:
    async with running_stack() as stack:
        answer = (await stack.http.post(CHAT, json=chat(max_tokens=256))).json()
        request = stack.engine.added[0]
        await stack.http.post(CHAT, json=chat(max_tokens=256, min_tokens=250))

    assert request.sampling.max_tokens == 256 - len(request.prompt_token_ids)
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert stack.engine.added[1].sampling.min_tokens == stack.engine.added[1].sampling.max_tokens


async def test_reasoning_effort_reaches_a_template_that_reads_it() -> None:
    template = "{{ messages[0].content }}{% if reasoning_effort == 'high' %}!{% endif %}{{ enable_thinking }}"
    async with running_stack(assets=make_assets(chat_template=template)) as stack:
        assert await prompt_of(stack, reasoning_effort="high", enable_thinking=False) == "hi!False"
        assert (
            await prompt_of(
                stack,
                reasoning_effort="high",
                chat_template_kwargs={"reasoning_effort": "low", "enable_thinking": True},
            )
            == "hiTrue"
        )


async def test_a_history_with_tools_is_rendered_without_what_the_template_does_not_read() -> None:
    async with running_stack() as stack:
        text = await prompt_of(stack, messages=TOOL_HISTORY)

    assert text == (
        "<|start|>user\nweather?<|end|>\n<|start|>assistant\n<|end|>\n<|start|>tool\nrain<|end|>\n<|start|>assistant\n"
    )


async def test_the_last_message_goes_on() -> None:
    messages = [*HI, {"role": "assistant", "content": "Hi,"}]
    async with running_stack() as stack:
        text = await prompt_of(stack, messages=messages, continue_final_message=True)
        stack.say(" you")
        echoed = await stack.http.post(
            CHAT, json=chat(messages=messages, continue_final_message=True, echo=True, max_tokens=9)
        )

    assert text == "<|start|>user\nhi<|end|>\n<|start|>assistant\nHi,"
    assert echoed.json()["choices"][0]["message"]["content"] == "Hi, you"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_echo_in_chat_has_no_log_probabilities_of_its_own(is_stream: bool) -> None:
    messages = [*HI, {"role": "assistant", "content": "Hi,"}]
    async with running_stack() as stack:
        stack.say(" you")
        body = chat(messages=messages, echo=True, logprobs=True, max_tokens=9, stream=is_stream)
        response = await stack.http.post(CHAT, json=body)

    assert response.status_code == 200, response.text
    assert "error" not in response.text
    if not is_stream:
        (choice,) = response.json()["choices"]
        assert choice["message"]["content"] == "Hi, you"
        assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == " you"


async def test_truncated_prompts_keep_their_end() -> None:
    async with running_stack() as stack:
        body = {"prompt": "abcdef", "truncate_prompt_tokens": 3, "max_tokens": 1, "echo": True}
        answer = (await stack.http.post(COMPLETION, json=body)).json()

    assert stack.engine.added[0].prompt_token_ids == stack.ids("def")
    assert answer["choices"][0]["text"].startswith("def")


async def test_bad_words_and_allowed_tokens_reach_the_engine() -> None:
    async with running_stack() as stack:
        await stack.http.post(CHAT, json=chat(bad_words=["ab"], allowed_token_ids=[64, 65]))

    sampling = stack.engine.added[0].sampling
    assert set(sampling.bad_words_token_ids) == {tuple(stack.ids("ab")), tuple(stack.ids(" ab"))}
    assert sampling.allowed_token_ids == (64, 65)


async def test_the_ignored_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="stoker_runtime.request")
    async with running_stack() as stack:
        await stack.http.post(CHAT, json=chat(colour="red", messages=[{**HI[0], "name": "ann"}]))

    (line,) = [record for record in caplog.records if record.message == "request"]
    assert vars(line)["ignored"] == ["colour", "messages[].name"]
