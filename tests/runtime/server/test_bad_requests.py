from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from server_engine import Stack, make_server_config, running_stack

from stoker_runtime.server import body as reading
from stoker_runtime.server.fields import MAX_LOGIT_BIASES, MAX_PROMPTS

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
    case("no-model", CHAT, {"messages": HI}, "model", code="missing_required_parameter"),
    case("wrong-model", CHAT, chat(model="gpt-4"), "model", status=404, code="model_not_found"),
    case("model-is-a-number", CHAT, chat(model=5), "model"),
    case("no-messages", CHAT, {"model": "tiny"}, "messages"),
    case("no-message", CHAT, chat(messages=[]), "messages"),
    case("messages-are-text", CHAT, chat(messages="hi"), "messages"),
    case("a-message-is-text", CHAT, chat(messages=["hi"]), "messages[0]"),
    case("role-unknown", CHAT, message(role="tool"), "messages[0].role"),
    case("content-missing", CHAT, chat(messages=[{"role": "user"}]), "messages[0].content"),
    case("content-null", CHAT, message(content=None), "messages[0].content"),
    case("content-image", CHAT, message(content=[{"type": "image_url"}]), "messages[0].content"),
    case("content-part-untyped", CHAT, message(content=[{"text": "a"}]), "messages[0].content"),
    case(
        "content-part-extra",
        CHAT,
        message(content=[{"type": "text", "text": "a", "x": 1}]),
        "messages[0].content",
    ),
    case("content-part-empty", CHAT, message(content=[{"type": "text"}]), "messages[0].content"),
    case("message-field-unknown", CHAT, message(mood="glad"), "messages[0].mood", code="unknown_parameter"),
    case("message-tool-calls", CHAT, message(role="assistant", tool_calls=[{}]), "messages[0].tool_calls"),
    case("field-unknown", CHAT, chat(colour="red"), "colour", code="unknown_parameter"),
    case("tools", CHAT, chat(tools=[{"type": "function"}]), "tools", code="unsupported_parameter"),
    case("tool-choice", CHAT, chat(tool_choice="required"), "tool_choice"),
    case("functions", CHAT, chat(functions=[{"name": "f"}]), "functions"),
    case("response-format", CHAT, chat(response_format={"type": "json_object"}), "response_format"),
    case("audio", CHAT, chat(audio={"voice": "a"}), "audio"),
    case("modalities", CHAT, chat(modalities=["audio"]), "modalities"),
    case("reasoning-effort", CHAT, chat(reasoning_effort="high"), "reasoning_effort"),
    case("store", CHAT, chat(store=True), "store"),
    case("cache-retention", CHAT, chat(prompt_cache_retention="24h"), "prompt_cache_retention"),
    case("service-tier", CHAT, chat(service_tier="flex"), "service_tier"),
    case("chat-template", CHAT, chat(chat_template="{{ 1 }}"), "chat_template"),
    case(
        "template-argument-reserved", CHAT, chat(chat_template_kwargs={"messages": 1}), "chat_template_kwargs"
    ),
    case("template-argument-nested", CHAT, chat(chat_template_kwargs={"a": []}), "chat_template_kwargs"),
    case("temperature-text", CHAT, chat(temperature="1"), "temperature"),
    case("temperature-high", CHAT, chat(temperature=2.1), "temperature"),
    case("temperature-negative", CHAT, chat(temperature=-0.1), "temperature"),
    case("top-p-zero", CHAT, chat(top_p=0), "top_p"),
    case("top-k-below-minus-one", CHAT, chat(top_k=-2), "top_k"),
    case("min-p-high", CHAT, chat(min_p=1.5), "min_p"),
    case("repetition-penalty-zero", CHAT, chat(repetition_penalty=0), "repetition_penalty"),
    case("presence-penalty-high", CHAT, chat(presence_penalty=3), "presence_penalty"),
    case("frequency-penalty-low", CHAT, chat(frequency_penalty=-3), "frequency_penalty"),
    case("n-zero", CHAT, chat(n=0), "n"),
    case("n-huge", CHAT, chat(n=10**6), "n"),
    case("n-fraction", CHAT, chat(n=1.5), "n"),
    case("n-true", CHAT, chat(n=True), "n"),
    case("seed-beyond-64-bit", CHAT, chat(seed=2**63), "seed"),
    case("max-tokens-zero", CHAT, chat(max_tokens=0), "max_tokens"),
    case("two-limits", CHAT, chat(max_tokens=1, max_completion_tokens=2), "max_tokens"),
    case("min-tokens-above-max", CHAT, chat(min_tokens=3, max_tokens=2), "min_tokens"),
    case("five-stops", CHAT, chat(stop=list("abcde")), "stop"),
    case("empty-stop", CHAT, chat(stop=[""]), "stop"),
    case("stop-number", CHAT, chat(stop=1), "stop"),
    case("long-stop", CHAT, chat(stop="a" * 300), "stop"),
    case("stop-token-beyond", CHAT, chat(stop_token_ids=[512]), "stop_token_ids"),
    case("bias-key-text", CHAT, chat(logit_bias={"a": 1}), "logit_bias"),
    case("bias-too-strong", CHAT, chat(logit_bias={"1": 101}), "logit_bias"),
    case("bias-token-beyond", CHAT, chat(logit_bias={"512": 1}), "logit_bias"),
    case(
        "biases-too-many",
        CHAT,
        chat(logit_bias={str(i): 1 for i in range(MAX_LOGIT_BIASES + 1)}),
        "logit_bias",
    ),
    case("top-logprobs-alone", CHAT, chat(top_logprobs=2), "top_logprobs"),
    case("top-logprobs-many", CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    case("stream-options-alone", CHAT, chat(stream_options={"include_usage": True}), "stream_options"),
    case("stream-option-unknown", CHAT, chat(stream=True, stream_options={"x": 1}), "stream_options.x"),
    case("stream-text", CHAT, chat(stream="yes"), "stream"),
    case("cache-salt-empty", CHAT, chat(cache_salt=""), "cache_salt"),
    case("priority-too-high", CHAT, chat(priority=2**31), "priority"),
    case("priority-too-low", COMPLETION, completion(priority=-(2**31) - 1), "priority"),
    case("priority-a-fraction", CHAT, chat(priority=0.5), "priority"),
    case("priority-true", CHAT, chat(priority=True), "priority"),
    case("chat-too-long", CHAT, message(content="a" * 300), "messages", code="context_length_exceeded"),
    case(
        "template-argument-never-read", CHAT, chat(chat_template_kwargs={"colour": 1}), "chat_template_kwargs"
    ),
    case("name-without-effect", CHAT, message(name="ann"), "messages[0].name", code="invalid_value"),
    case(
        "max-tokens-beyond-the-room", CHAT, chat(max_tokens=256), "max_tokens", code="context_length_exceeded"
    ),
    case(
        "max-completion-tokens-beyond-the-room",
        CHAT,
        chat(max_completion_tokens=256),
        "max_completion_tokens",
        code="context_length_exceeded",
    ),
    case(
        "min-tokens-beyond-the-room", CHAT, chat(min_tokens=240), "min_tokens", code="context_length_exceeded"
    ),
    case("length-penalty", CHAT, chat(length_penalty=2), "length_penalty", code="unsupported_parameter"),
    case("length-penalty-true", CHAT, chat(length_penalty=True), "length_penalty"),
    case("store-as-a-number", CHAT, chat(store=0), "store"),
    case(
        "longest-of-several-prompts",
        COMPLETION,
        completion(prompt=["a", "a" * 250], max_tokens=10),
        "max_tokens",
        code="context_length_exceeded",
    ),
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
    case("echo", COMPLETION, completion(echo=True), "echo"),
    case("suffix", COMPLETION, completion(suffix="z"), "suffix"),
    case("best-of", COMPLETION, completion(best_of=3), "best_of"),
    case("logprobs-many", COMPLETION, completion(logprobs=21), "logprobs"),
    case("logprobs-bool", COMPLETION, completion(logprobs=True), "logprobs"),
    case("messages-for-a-completion", COMPLETION, completion(messages=HI), "messages"),
    case("tokenize-nothing", "/tokenize", {}, "prompt"),
    case("tokenize-both", "/tokenize", {"prompt": "a", "messages": HI}, "prompt"),
    case(
        "tokenize-misplaced",
        "/tokenize",
        {"prompt": "a", "add_generation_prompt": True},
        "add_generation_prompt",
    ),
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
    async with running_stack(config=make_server_config(max_request_bytes=100_000)) as stack:
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
        response = await stack.http.post(CHAT, json=chat(max_tokens=1, length_penalty=value))

    assert response.status_code == 200


async def test_json_without_a_content_type_is_read() -> None:
    async with running_stack() as stack:
        request = stack.http.build_request("POST", CHAT, content=msgspec.json.encode(chat(max_tokens=1)))
        response = await stack.http.send(request)

    assert response.status_code == 200
