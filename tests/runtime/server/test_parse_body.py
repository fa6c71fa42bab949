"""What of a body is taken, what is ignored and named, and what is refused: without a server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_runtime.errors import RequestError
from stoker_runtime.server.body import parse_body
from stoker_runtime.server.fields import MAX_LOGGED_CHARS
from stoker_runtime.server.protocol import Body, ChatBody, CompletionBody, TokenizeBody
from stoker_runtime.server.unoffered import CHAT_NOT_OFFERED, NOT_OFFERED

HI = [{"role": "user", "content": "hi"}]
CHAT = {"messages": HI}
COMPLETION = {"prompt": "a"}
MODELS: list[tuple[type[Body], dict[str, Any]]] = [(ChatBody, CHAT), (CompletionBody, COMPLETION)]


def parse(model: type[Body], body: dict[str, Any]) -> tuple[Body, list[str]]:
    return parse_body(msgspec.json.encode(body), model)


def chat(**fields: Any) -> tuple[ChatBody, list[str]]:
    body, ignored = parse(ChatBody, {**CHAT, **fields})
    assert isinstance(body, ChatBody)
    return body, ignored


def message(**fields: Any) -> tuple[dict[str, Any], list[str]]:
    body, ignored = chat(messages=[{"role": "user", **fields}])
    return body.messages.messages[0], ignored


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"colour": "red", "keep_alive": "5m"}, ["colour", "keep_alive"]),
        ({"request_id": "1", "cache_prompt": True, "id_slot": -1}, ["request_id", "cache_prompt", "id_slot"]),
        ({"thinking": {"type": "enabled"}, "include_reasoning": False}, ["thinking", "include_reasoning"]),
        ({"separate_reasoning": True, "top_k": 5}, ["separate_reasoning"]),
        ({"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1}, ["mirostat_tau", "mirostat_eta"]),
        ({"store": True, "service_tier": "flex"}, ["store", "service_tier"]),
        ({"store": False, "service_tier": "auto"}, []),
        ({"prediction": {"type": "content", "content": "x"}}, ["prediction"]),
        ({"prompt_cache_retention": "24h"}, ["prompt_cache_retention"]),
        ({"logprobs": False, "top_logprobs": 5}, ["top_logprobs"]),
        ({"logprobs": False, "top_logprobs": 0}, []),
        ({"max_tokens": 5, "max_completion_tokens": 6}, ["max_tokens"]),
        ({"n_predict": 5, "max_tokens": 6}, ["n_predict"]),
        ({"repeat_penalty": 1.1}, []),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True, "x": 1, "include_usage": True}},
            ["stream_options.include_obfuscation", "stream_options.x"],
        ),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, ["tools"]),
        ({"functions": [{"name": "f"}], "function_call": "none"}, ["functions"]),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, []),
        ({"audio": {"voice": "a"}}, ["audio"]),
        ({"length_penalty": 2, "early_stopping": True}, ["length_penalty", "early_stopping"]),
    ],
)
def test_what_a_chat_has_beside_what_is_read_is_named(fields: dict[str, Any], ignored: list[str]) -> None:
    assert chat(**fields)[1] == ignored


@pytest.mark.parametrize(("model", "body"), MODELS)
def test_null_asks_for_nothing_in_every_field(model: type[Body], body: dict[str, Any]) -> None:
    names = {*model.model_fields, *CHAT_NOT_OFFERED, "colour", "tools", "functions"} - body.keys()

    parsed, ignored = parse(model, {**body, **dict.fromkeys(names)})

    assert parsed == parse(model, body)[0]
    assert ignored == []


@pytest.mark.parametrize(("model", "body"), MODELS)
def test_what_is_not_offered_is_taken_with_each_value_that_asks_for_nothing(
    model: type[Body], body: dict[str, Any]
) -> None:
    table = CHAT_NOT_OFFERED if model is ChatBody else NOT_OFFERED
    for name, neutral in table.items():
        texts = [msgspec.json.encode(value).decode() for value in neutral if isinstance(value, int)]
        for value in (*neutral, *texts, None, "", [], {}):
            parsed, ignored = parse(model, {**body, name: value})
            assert (parsed, ignored) == (parse(model, body)[0], [])


@pytest.mark.parametrize(("model", "body"), MODELS)
def test_what_is_not_offered_is_refused_with_any_other_value(model: type[Body], body: dict[str, Any]) -> None:
    for name, neutral in (CHAT_NOT_OFFERED if model is ChatBody else NOT_OFFERED).items():
        with pytest.raises(RequestError, match=f"`{name}` is not supported") as caught:
            parse(model, {**body, name: {"other": 1}})
        assert (caught.value.status, caught.value.param) == (400, name)
        assert caught.value.code == "unsupported_parameter"
        assert all(repr(value) in str(caught.value) for value in neutral)


@pytest.mark.parametrize(
    ("fields", "name", "want"),
    [
        ({"temperature": "0.5"}, "temperature", 0.5),
        ({"temperature": 50}, "temperature", 50.0),
        ({"max_tokens": 16.0}, "max_tokens", 16),
        ({"max_tokens": "16"}, "max_tokens", 16),
        ({"max_tokens": -1}, "max_tokens", -1),
        ({"n_predict": 7}, "max_tokens", 7),
        ({"stream": "true"}, "stream", True),
        ({"stop": ["a", None, "", "a", "b", "c", "d", "e", "f"]}, "stop", tuple("abcdef")),
        ({"stop": ""}, "stop", ()),
        ({"stop": "x" * 5000}, "stop", ("x" * 5000,)),
        ({"seed": -1}, "seed", None),
        ({"seed": -2}, "seed", 2**63 - 2),
        ({"seed": 2**64 + 5}, "seed", 5),
        ({"repeat_penalty": 1.5}, "repetition_penalty", 1.5),
        ({"repeat_penalty": 1.5, "repetition_penalty": 1.2}, "repetition_penalty", 1.2),
        ({"presence_penalty": 3}, "presence_penalty", 3.0),
        ({"frequency_penalty": -9.5}, "frequency_penalty", -9.5),
        ({"logit_bias": {"5": "1.5", "6": None}}, "logit_bias", {5: 1.5}),
        ({"logit_bias": {"5": 200}}, "logit_bias", {5: 100.0}),
        ({"logit_bias": [[5, False], [6, 1]]}, "logit_bias", {5: -100.0, 6: 1.0}),
        ({"model": ""}, "model", ""),
        ({"cache_salt": "x" * 1000}, "cache_salt", "x" * 1000),
        ({"user": 17}, "user", "17"),
        ({"user": "u" * 9999}, "user", "u" * MAX_LOGGED_CHARS),
        ({"metadata": {"a": 1, "b": None}}, "metadata", {"a": "1", "b": "None"}),
        ({"metadata": "run 1"}, "metadata", {"metadata": "run 1"}),
        ({"chat_template_kwargs": {"a": [1, {"b": 2}]}}, "chat_template_kwargs", {"a": [1, {"b": 2}]}),
        ({"chat_template_kwargs": {"tools": None}}, "chat_template_kwargs", {}),
        ({"bad_words": "x"}, "bad_words", ("x",)),
        ({"logprobs": True, "top_logprobs": 300}, "top_logprobs", 300),
    ],
)
def test_a_value_is_taken_as_far_as_it_can_be(fields: dict[str, Any], name: str, want: object) -> None:
    body, ignored = chat(**fields)

    assert getattr(body, name) == want
    assert ignored == [] or "repetition_penalty" in fields


@pytest.mark.parametrize("options", [{}, {"include_usage": False}, {"continuous_usage_stats": None}])
def test_options_of_a_stream_that_ask_for_nothing_need_no_stream(options: dict[str, Any]) -> None:
    assert chat(stream_options=options)[1] == []


def test_a_text_that_looks_like_json_is_a_text_where_no_number_is_meant() -> None:
    with pytest.raises(RequestError, match="guided_regex"):
        chat(guided_regex="null")


@pytest.mark.parametrize(("value", "want"), [(True, 0), (False, None), (3, 3), (-1, -1)])
def test_a_completions_log_probabilities_may_be_a_switch(value: object, want: int | None) -> None:
    body, _ = parse(CompletionBody, {**COMPLETION, "logprobs": value})

    assert isinstance(body, CompletionBody)
    assert body.logprobs == want


def test_a_plain_prompt_does_not_look_at_what_is_for_messages() -> None:
    fields = {"prompt": "a", "add_generation_prompt": True, "chat_template_kwargs": {"x": 1}, "y": 2}

    assert parse(TokenizeBody, fields)[1] == ["y", "add_generation_prompt", "chat_template_kwargs"]


@pytest.mark.parametrize(
    ("content", "want"),
    [
        ("a", "a"),
        ([], []),
        (["a", {"type": "text", "text": "b"}], ["a", "b"]),
        ([{"text": "b"}], ["b"]),
        ({"type": "text", "text": "b"}, ["b"]),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], ["a", "b"]),
        ([{"type": "refusal", "refusal": "no"}], ["no"]),
        ([{"type": "text", "text": None}], [""]),
        ([{"type": "text"}], [""]),
    ],
)
def test_text_in_any_kind_of_part_is_text(content: object, want: object) -> None:
    found, ignored = message(content=content)

    texts = found["content"]
    if isinstance(texts, list):
        assert all(list(part) == ["type", "text"] and part["type"] == "text" for part in texts)
        texts = [part["text"] for part in texts]
    assert texts == want
    assert ignored == []


def test_null_and_missing_content_are_no_content() -> None:
    assert "content" not in message(content=None)[0]
    assert "content" not in message()[0]


def test_what_a_history_says_of_its_past_is_kept_for_the_template() -> None:
    past = {
        "name": "ann",
        "id": 5,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        "cache_control": {"type": "ephemeral"},
        "extra_field": [1],
    }

    found, ignored = message(content="a", refusal=None, **past)

    assert found == {"role": "user", "content": "a", **past}
    assert ignored == []  # which of them are looked at, the template decides


def test_what_parts_have_beside_their_text_is_named_once() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "annotations": None}

    found, ignored = message(content=[part, part])

    assert found["content"] == [{"type": "text", "text": "a"}] * 2
    assert ignored == ["messages[].content[].cache_control"]


def test_parts_with_reasoning_become_the_messages_reasoning() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm ", "signature": "x"},
        {"type": "reasoning", "text": "so"},
        {"type": "redacted_thinking", "data": "y"},
        {"type": "text", "text": "a"},
    ]

    found, ignored = message(role="assistant", content=parts)

    assert found["reasoning_content"] == "hm so"
    assert found["content"] == [{"type": "text", "text": "a"}]
    assert ignored == ["messages[].content[].signature", "messages[].content[].data"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    unknown=st.dictionaries(st.text(min_size=1).map(lambda name: f"x{name}x"), json_values, max_size=5),
    known=st.fixed_dictionaries(
        {}, optional={"temperature": st.floats(0, 9), "n": st.integers(1, 9), "user": json_values}
    ),
)
def test_unknown_fields_change_nothing_and_are_all_named(
    unknown: dict[str, Any], known: dict[str, Any]
) -> None:
    for model, body in MODELS:
        parsed, ignored = parse(model, {**unknown, **body, **known})

        assert parsed == parse(model, {**body, **known})[0]
        assert ignored == [name for name, value in unknown.items() if value is not None]


@given(
    messages=st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "name", "x"]), json_values), max_size=4
    )
)
def test_any_messages_are_read_or_refused_by_name(messages: list[Any]) -> None:
    refusal = None
    try:
        body, _ = chat(messages=messages)
    except RequestError as error:
        refusal = error
    if refusal is not None:
        assert str(refusal.param).startswith("messages")
        return
    assert len(body.messages.messages) == len(messages)
    for found in body.messages.messages:
        assert isinstance(found["role"], str)
        assert isinstance(found.get("content", ""), str | list)
        assert None not in found.values()
