from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from server_engine import Stack, make_server_config, running_stack

from stoker_runtime.server import body as reading
from stoker_runtime.server.fields import MAX_LOGIT_BIASES, MAX_PROMPTS, MAX_STOP_STRINGS

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def chat(**fields: object) -> dict[str, object]:
    return {"model": "tiny", "messages": HI, **fields}


def completion(**fields: object) -> dict[str, object]:
    return {"model": "tiny", "prompt": "a", **fields}


def message(**fields: object) -> dict[str, object]:
    return chat(messages=[{**HI[0], **fields}])


def case(name: str, path: str, body: object, param: str | None, *, status: int = 400, code: str = "") -> Any:
    return pytest.param(path, body, param, status, code, id=name)


BAD_FIELDS = [
    case("wrong-model", CHAT, chat(model="gpt-4"), "model", status=404, code="model_not_found"),
    case("model-is-a-number", CHAT, chat(model=5), "model"),
    case("no-messages", CHAT, {"model": "tiny"}, "messages"),
    case("no-message", CHAT, chat(messages=[]), "messages"),
    case("messages-are-text", CHAT, chat(messages="hi"), "messages"),
    case("a-message-is-text", CHAT, chat(messages=["hi"]), "messages[0]"),
    case("content-image", CHAT, message(content=[{"type": "image_url"}]), "messages[0].content[0]"),
    case("content-part-number", CHAT, message(content=[5]), "messages[0].content[0]"),
    case(
        "content-part-text-number",
        CHAT,
        message(content=[{"type": "text", "text": 5}]),
        "messages[0].content[0].text",
    ),
    case("content-number", CHAT, message(content=5), "messages[0].content"),
    case("no-role", CHAT, chat(messages=[{"content": "hi"}]), "messages[0].role"),
    case("role-empty", CHAT, message(role=""), "messages[0].role"),
    case("role-number", CHAT, message(role=1), "messages[0].role"),
    case("tools-and-auto", CHAT, chat(tools=[{"type": "function"}], tool_choice="auto"), "tools"),
    case("a-named-tool", CHAT, chat(tool_choice={"type": "function"}), "tool_choice"),
    case("documents", CHAT, chat(documents=[{"text": "a"}]), "documents", code="unsupported_parameter"),
    case(
        "goes-on-and-begins",
        CHAT,
        chat(continue_final_message=True, add_generation_prompt=True),
        "continue_final_message",
    ),
    case("mirostat", CHAT, chat(mirostat=2), "mirostat", code="unsupported_parameter"),
    case("mirostat-true", CHAT, chat(mirostat=True), "mirostat", code="unsupported_parameter"),
    case("typical-p", COMPLETION, completion(typical_p=0.5), "typical_p", code="unsupported_parameter"),
    case("beams", COMPLETION, completion(use_beam_search=True), "use_beam_search"),
    case("guided", COMPLETION, completion(guided_regex="a*"), "guided_regex"),
    case(
        "response-format-completion",
        COMPLETION,
        completion(response_format={"type": "json_object"}),
        "response_format",
    ),
    case("no-token-left", COMPLETION, completion(allowed_token_ids=[64], bad_words=["a"]), "bad_words"),
    case("grammar", CHAT, chat(grammar="root ::= x"), "grammar"),
    case("tools", CHAT, chat(tools=[{"type": "function"}]), "tools", code="unsupported_parameter"),
    case("tool-choice", CHAT, chat(tool_choice="required"), "tool_choice"),
    case("functions", CHAT, chat(functions=[{"name": "f"}]), "functions"),
    case("response-format", CHAT, chat(response_format={"type": "json_object"}), "response_format"),
    case("modalities", CHAT, chat(modalities=["audio"]), "modalities"),
    case("chat-template", CHAT, chat(chat_template="{{ 1 }}"), "chat_template"),
    case(
        "template-argument-reserved", CHAT, chat(chat_template_kwargs={"messages": 1}), "chat_template_kwargs"
    ),
    case("temperature-negative", CHAT, chat(temperature=-0.1), "temperature"),
    case("min-p-high", CHAT, chat(min_p=1.5), "min_p"),
    case("n-zero", CHAT, chat(n=0), "n"),
    case("n-huge", CHAT, chat(n=10**6), "n"),
    case("n-fraction", CHAT, chat(n=1.5), "n"),
    case("min-tokens-above-max", CHAT, chat(min_tokens=3, max_tokens=2), "min_tokens"),
    case("stop-number", CHAT, chat(stop=1), "stop"),
    case("stop-token-beyond", CHAT, chat(stop_token_ids=[512]), "stop_token_ids"),
    case("bias-key-text", CHAT, chat(logit_bias={"a": 1}), "logit_bias"),
    case("bias-token-beyond", CHAT, chat(logit_bias={"512": 1}), "logit_bias"),
    case(
        "biases-too-many",
        CHAT,
        chat(logit_bias={str(i): 1 for i in range(MAX_LOGIT_BIASES + 1)}),
        "logit_bias",
    ),
    case("stream-options-alone", CHAT, chat(stream_options={"include_usage": True}), "stream_options"),
    case("priority-too-high", CHAT, chat(priority=2**31), "priority"),
    case("priority-too-low", COMPLETION, completion(priority=-(2**31) - 1), "priority"),
    case("priority-a-fraction", CHAT, chat(priority=0.5), "priority"),
    case("chat-too-long", CHAT, message(content="a" * 300), "messages", code="context_length_exceeded"),
    case(
        "max-tokens-beyond-the-room", CHAT, chat(max_tokens=257), "max_tokens", code="context_length_exceeded"
    ),
    case(
        "max-completion-tokens-beyond-the-room",
        CHAT,
        chat(max_completion_tokens=257),
        "max_completion_tokens",
        code="context_length_exceeded",
    ),
    case("min-tokens-beyond-the-room", CHAT, chat(min_tokens=257), "min_tokens"),
    case(
        "longer-than-any-tokens",
        COMPLETION,
        completion(prompt="a" * 90_000),
        "prompt",
        code="context_length_exceeded",
    ),
    case(
        "chat-longer-than-any-tokens",
        CHAT,
        message(content="a" * 90_000),
        "messages",
        code="context_length_exceeded",
    ),
    case("no-prompt", COMPLETION, {"model": "tiny"}, "prompt"),
    case("prompt-empty", COMPLETION, completion(prompt=""), "prompt"),
    case("prompt-list-empty", COMPLETION, completion(prompt=[]), "prompt"),
    case("prompt-token-list-empty", COMPLETION, completion(prompt=[[]]), "prompt"),
    case("prompt-mixed", COMPLETION, completion(prompt=["a", [1]]), "prompt"),
    case("prompt-object", COMPLETION, completion(prompt={"a": 1}), "prompt"),
    case("prompt-negative-token", COMPLETION, completion(prompt=[-1]), "prompt"),
    case("prompt-token-beyond", COMPLETION, completion(prompt=[512]), "prompt"),
    case("prompts-too-many", COMPLETION, completion(prompt=["a"] * (MAX_PROMPTS + 1)), "prompt"),
    case(
        "prompt-too-long", COMPLETION, completion(prompt="a" * 256), "prompt", code="context_length_exceeded"
    ),
    case("suffix", COMPLETION, completion(suffix="z"), "suffix"),
    case("best-of-fewer", COMPLETION, completion(n=3, best_of=2), "best_of"),
    case("best-of-stream", COMPLETION, completion(stream=True, best_of=2), "best_of"),
    case("prompt-logprobs-stream", CHAT, chat(stream=True, prompt_logprobs=1), "prompt_logprobs"),
    case("allowed-beyond", CHAT, chat(allowed_token_ids=[512]), "allowed_token_ids"),
    case("allowed-none", CHAT, chat(allowed_token_ids=[]), "allowed_token_ids"),
    case("bad-words-number", CHAT, chat(bad_words=[1]), "bad_words"),
    case("chat-max-tokens-zero", CHAT, chat(max_tokens=0), "max_tokens"),
    case("max-tokens-below-minus-one", CHAT, chat(max_tokens=-3), "max_tokens"),
    case("temperature-a-word", CHAT, chat(temperature="hot"), "temperature"),
    case("stops-too-many", CHAT, chat(stop=[str(i) for i in range(MAX_STOP_STRINGS + 1)]), "stop"),
    case("suffix-of-token-ids", COMPLETION, completion(prompt=[1], suffix="z"), "suffix"),
    case("tokenize-nothing", "/tokenize", {}, "prompt"),
    case("tokenize-both", "/tokenize", {"prompt": "a", "messages": HI}, "prompt"),
    case("tokenize-wrong-model", "/tokenize", {"prompt": "a", "model": "x"}, "model", status=404),
    case("detokenize-text", "/detokenize", {"tokens": "a"}, "tokens"),
    case("detokenize-beyond", "/detokenize", {"tokens": [512]}, "tokens"),
]

JSON = {"content-type": "application/json"}
BAD_HTTP = [
    pytest.param("POST", CHAT, b"", JSON, 400, id="no-body"),
    pytest.param("POST", CHAT, b"{", JSON, 400, id="cut-json"),
    pytest.param("POST", CHAT, b"[]", JSON, 400, id="a-list"),
    pytest.param("POST", CHAT, b"null", JSON, 400, id="null"),
    pytest.param("POST", CHAT, b'{"model":"tiny","messages":NaN}', JSON, 400, id="nan"),
    pytest.param("POST", CHAT, b'{"model":"tiny","temperature":1e999}', JSON, 400, id="infinite"),
    pytest.param("POST", CHAT, b'{"model":"\xff"}', JSON, 400, id="not-utf-8"),
    pytest.param("POST", CHAT, b'{"model":"\\ud800"}', JSON, 400, id="lone-surrogate"),
    pytest.param("POST", CHAT, b"[" * 100_000, JSON, 400, id="deep"),
    pytest.param("POST", CHAT, b'{"n":' + b"9" * 5000 + b"}", JSON, 400, id="number-of-5000-digits"),
    pytest.param(
        "POST", CHAT, b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415, id="a-form"
    ),
    pytest.param("POST", CHAT, b"{}", {"content-type": "text/plain"}, 415, id="plain-text"),
    pytest.param("POST", CHAT, b"\x1f\x8b", {**JSON, "content-encoding": "gzip"}, 415, id="compressed"),
    pytest.param("POST", CHAT, b" " * 5000, JSON, 413, id="too-large"),
    pytest.param("POST", CHAT, b"{}", {**JSON, "content-length": "99999999"}, 413, id="announced-too-large"),
    pytest.param("GET", CHAT, b"", {}, 405, id="get"),
    pytest.param("DELETE", "/v1/models", b"", {}, 405, id="delete"),
    pytest.param("POST", "/health", b"", {}, 405, id="post-to-a-probe"),
    pytest.param("GET", "/v1/models/gpt-4", b"", {}, 404, id="unknown-model"),
    pytest.param("GET", "/", b"", {}, 404, id="root"),
    pytest.param("POST", "/v1/embeddings", b"{}", JSON, 404, id="unknown-route"),
]


async def check_unharmed(stack: Stack) -> None:
    assert (await stack.http.get("/health")).status_code == 200
    assert (await stack.http.get("/load")).json()["in_flight"] == 0
    assert stack.engine.num_live == 0


def check_error(body: bytes) -> dict[str, Any]:
    content = msgspec.json.decode(body)
    assert list(content) == ["error"]
    assert list(content["error"]) == ["message", "type", "param", "code"]
    assert content["error"]["message"]
    assert content["error"]["type"] in ("invalid_request_error", "rate_limit_error")
    return dict(content["error"])


@pytest.mark.parametrize(("path", "body", "param", "status", "code"), BAD_FIELDS)
async def test_a_bad_field_is_refused_by_name(
    path: str, body: object, param: str | None, status: int, code: str
) -> None:
    async with running_stack(config=make_server_config(max_request_bytes=500_000)) as stack:
        response = await stack.http.post(path, json=body)

        assert response.status_code == status, response.text
        error = check_error(response.content)
        assert error["param"] == param
        assert f"`{param}`" in error["message"]
        if code:
            assert error["code"] == code
        await check_unharmed(stack)
        assert stack.engine.added == []


@pytest.mark.parametrize(("method", "path", "body", "headers", "status"), BAD_HTTP)
async def test_bad_http_is_refused_in_openais_form(
    method: str, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    async with running_stack(
        config=make_server_config(max_request_bytes=4096 if status == 413 else 2**20)
    ) as stack:
        response = await stack.http.request(method, path, content=body, headers=headers)

        assert response.status_code == status, response.text
        check_error(response.content)
        await check_unharmed(stack)


async def test_a_body_without_length_is_measured_as_it_comes() -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 100

    async with running_stack(config=make_server_config(max_request_bytes=4096)) as stack:
        response = await stack.http.post(CHAT, content=chunks(), headers=JSON)

    assert response.status_code == 413
    assert check_error(response.content)["code"] == "request_too_large"


async def test_a_body_that_does_not_come_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BODY_LIMIT_S", 0.05)
    more = asyncio.Event()

    async def chunks() -> Any:
        yield b"{"
        await more.wait()

    async with running_stack() as stack:
        response = await stack.http.post(CHAT, content=chunks(), headers=JSON)

        assert (response.status_code, response.headers["connection"]) == (408, "close")
        assert check_error(response.content)["code"] == "request_timeout"
        await check_unharmed(stack)


@pytest.mark.parametrize("value", [1, 1.0, None])
async def test_a_number_that_asks_for_nothing_may_be_written_either_way(value: float | None) -> None:
    async with running_stack() as stack:
        response = await stack.http.post(CHAT, json=chat(max_tokens=1, typical_p=value))

    assert response.status_code == 200


async def test_json_without_a_content_type_is_read() -> None:
    async with running_stack() as stack:
        request = stack.http.build_request("POST", CHAT, content=msgspec.json.encode(chat(max_tokens=1)))
        response = await stack.http.send(request)

    assert response.status_code == 200
