"""What happens to every request before its route: methods, paths, keys, origins, and what was ignored."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_http import exchanged, opened
from server_engine import FakeEngine, Stack, listening, make_server_config, running_stack, until
from starlette.types import ASGIApp, Message

from stoker_runtime.errors import EngineDead
from stoker_runtime.server import app as server_app
from stoker_runtime.server.client import EngineClient
from stoker_runtime.server.listener import uvicorn_config
from stoker_runtime.server.serving import Record, Serving

GETS = (
    "/health",
    "/ready",
    "/load",
    "/metrics",
    "/version",
    "/v1/models",
    "/v1/models/tiny",
    "/openapi.json",
)
POSTS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
COMPLETION = {"model": "tiny", "prompt": "ab", "max_tokens": 3}
PAGE = {"origin": "https://chat.example"}
PREFLIGHT = {**PAGE, "access-control-request-method": "POST"}


def labels(handler: str, method: str, status: str) -> str:
    return f'http_requests_total{{handler="{handler}",method="{method}",status="{status}"}}'


@pytest.mark.parametrize("path", GETS)
async def test_head_is_get_without_the_body(path: str) -> None:
    async with running_stack() as stack, listening(stack) as url:
        heads = {}
        for method in ("GET", "HEAD"):
            answer = await exchanged(
                url, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            )
            head, _, body = answer.partition(b"\r\n\r\n")
            status, *lines = head.decode().split("\r\n")
            names = {line.split(": ")[0]: line.split(": ")[1] for line in lines}
            heads[method] = (status, {name: names.get(name) for name in ("content-type", "connection")})
            assert "content-length" in names
            assert (body == b"") == (method == "HEAD")

    assert heads["HEAD"] == heads["GET"]
    assert heads["HEAD"][0] == "HTTP/1.1 200 OK"


async def test_head_tells_what_get_would_while_loading_and_keeps_its_connection() -> None:
    async with running_stack() as stack, listening(stack) as url, opened(url) as (reader, writer):
        stack.serving.text = None
        for _ in range(2):
            writer.write(b"HEAD /ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        writer.write(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b'{"reason":"LoadingModel"}')
        text = (await stack.http.get("/metrics")).text

    assert f"{labels('/ready', 'HEAD', '5xx')} 2.0" in text.splitlines()


async def test_head_of_what_only_takes_post_is_a_405_without_a_body() -> None:
    async with running_stack() as stack:
        response = await stack.http.head("/tokenize")

    assert (response.status_code, response.content) == (405, b"")
    assert response.headers["allow"] == "OPTIONS, POST"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(path, "GET, HEAD, OPTIONS") for path in GETS]
    + [(path, "OPTIONS, POST") for path in POSTS]
    + [("/chat/completions/", "OPTIONS, POST"), ("*", "GET, HEAD, OPTIONS, POST")],
)
async def test_options_says_what_a_path_takes(path: str, allowed: str) -> None:
    async with running_stack(config=make_server_config(api_keys=("k",))) as stack, listening(stack) as url:
        answer = await exchanged(
            url, f"OPTIONS {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )

    lines = answer.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 204 No Content"
    assert f"allow: {allowed}" in lines
    assert answer.endswith(b"\r\n\r\n")


async def test_options_of_nothing_is_a_404() -> None:
    async with running_stack() as stack:
        assert (await stack.http.options("/nothing")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/models/tiny", "GET, HEAD, OPTIONS"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/chat/completions", "OPTIONS, POST"),
        ("PUT", "/tokenize", "OPTIONS, POST"),
    ],
)
async def test_a_405_names_the_methods(method: str, path: str, allowed: str) -> None:
    async with running_stack() as stack:
        response = await stack.http.request(method, path)

    error = response.json()["error"]
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert error["code"] == "method_not_allowed"
    assert error["message"] == f"{path} does not take {method}; it takes {allowed}"


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/completions", "/v1/completions/", "//v1/completions", "/v1//completions", "/completions"),
        *("/v1/v1/completions", "/llm/v1/completions", "/llm/completions/", "//llm//v1/completions"),
        *("/%76%31/completions", "/v1%2Fcompletions", "/llm%2fv1/completions"),
    ],
)
async def test_a_path_that_is_meant_is_answered_and_counted_as_itself(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="stoker_runtime.request")
    async with running_stack(config=make_server_config(root_path="/llm")) as stack, listening(stack) as url:
        async with httpx2.AsyncClient() as http:
            response = await http.post(url + path, json=COMPLETION)
        text = (await stack.http.get("/metrics")).text

    assert response.status_code == 200
    assert f"{labels('/v1/completions', 'POST', '2xx')} 1.0" in text.splitlines()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("path", ["/models", "/v1/models/", "/llm/v1/models"])
async def test_models_are_found_below_a_prefix_and_without_v1(path: str) -> None:
    names = ("hf://org/name", "/models/x")
    config = make_server_config(served_model_names=names, root_path="/llm")
    async with running_stack(config=config) as stack:
        listed = (await stack.http.get(path)).json()
        assert [card["id"] for card in listed["data"]] == list(names)
        for name in names:
            for spelt in (name, name.replace("/", "%2F"), f"{name}/"):
                response = await stack.http.get(f"{path.rstrip('/')}/{spelt}")
                assert (response.status_code, response.json()["id"]) == (200, name)


async def test_a_404_names_the_path_that_is_probably_meant() -> None:
    async with running_stack(config=make_server_config(root_path="/llm")) as stack:
        close = await stack.http.post("/v1/chat/completion", json={})
        far = await stack.http.get("/what/ever")

    assert close.json()["error"]["message"] == (
        "there is nothing at /v1/chat/completion; did you mean /llm/v1/chat/completions?"
    )
    assert far.json()["error"]["message"] == "there is nothing at /what/ever"
    assert (close.status_code, far.status_code) == (404, 404)


@pytest.mark.parametrize(
    "path",
    ["/v1/completions", "//v1/completions/", "/completions", "/llm/v1/completions", "/v1/v1/%63ompletions"],
)
async def test_no_spelling_of_a_path_slips_past_the_queue(path: str) -> None:
    engine = FakeEngine(max_running=1)
    config = make_server_config(max_queue=1, root_path="/llm")
    async with running_stack(engine, config=config) as stack, listening(stack) as url:
        stack.serving._preparing |= {Record("a"), Record("b")}
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100\r\n\r\n"
        answer = await exchanged(url, head.encode())  # its body never comes
        text = (await stack.http.get("/metrics")).text

    assert answer.startswith(b"HTTP/1.1 429 ")
    rejected = 'vllm:admission_rejections_total{engine="0",model_name="tiny",reason="max_num_queued_reqs"}'
    assert f"{rejected} 1.0" in text.splitlines()


def keyed(**changes: Any) -> Any:
    return make_server_config(api_keys=("secret-1", "secret-2"), **changes)


@pytest.mark.parametrize("path", [*POSTS, "/v1/models", "/v1/models/tiny", "/nothing"])
async def test_without_a_key_there_is_a_401_before_the_body(path: str) -> None:
    method = "POST" if path in POSTS else "GET"
    async with running_stack(config=keyed()) as stack, listening(stack) as url:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100\r\n\r\n"
        answer = await exchanged(url, head.encode())
        response = await stack.http.request(method, path, headers={"authorization": "Bearer wrong"})
        assert stack.serving.in_flight == 0

    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nwww-authenticate: Bearer\r\n" in answer
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer secret-1"}, {"x-api-key": "secret-2"}, {"api-key": "secret-1"}],
)
async def test_each_key_lets_in(headers: dict[str, str]) -> None:
    async with running_stack(config=keyed()) as stack:
        answered = await stack.http.post("/v1/completions", json=COMPLETION, headers=headers)
        listed = await stack.http.get("/v1/models", headers=headers)

    assert (answered.status_code, listed.status_code) == (200, 200)


OPEN = ("/health", "/ready", "/load", "/metrics", "/version", "/openapi.json")


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("prefix", ["", "/llm", "/"])
async def test_probes_and_scrapers_need_no_key(path: str, prefix: str) -> None:
    async with running_stack(config=keyed(root_path="/llm")) as stack:
        for method in ("GET", "HEAD"):
            response = await stack.http.request(method, f"http://stoker{prefix}{path}")
            assert response.status_code == 200


SLIPS = st.sampled_from(
    [
        *("/", "//", "/v1", "/models", "/health", "/metrics", "/llm", "/tokenize", "/completions", "/tiny"),
        *("/.", "/..", "%2F", "%2f", "/%76%31", "/%2e%2e", "%252F", ";", "%00", "%0a", "?", "#", "*", "\\"),
        *("/openapi.json", "/v1/models", "/V1"),
    ]
)


@given(st.lists(SLIPS, min_size=1, max_size=6), st.sampled_from(["GET", "HEAD", "POST", "PUT"]))
@settings(deadline=None)
def test_no_spelling_of_a_path_slips_past_the_keys(parts: list[str], method: str) -> None:
    path = unquote("/" + "".join(parts))

    status = asyncio.run(status_of(KEYED_APP, method, path))

    plain = re.sub("/+", "/", path).rstrip("/")
    assert status == 401 or plain.removeprefix("/llm") in OPEN


KEYED_APP = server_app.create_app(Serving(keyed(root_path="/llm"), EngineClient(), 1))


async def status_of(app: ASGIApp, method: str, path: str) -> int:
    """Call an application as a server would."""
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "query_string": b""}
    await app({**scope, "headers": [], "root_path": "", "scheme": "http"}, receive, send)
    return statuses[0]


async def test_a_key_in_a_path_or_a_query_is_none() -> None:
    async with running_stack(config=keyed()) as stack:
        for target in ("/v1/models?api-key=secret-1", "/v1/models?key=secret-1", "/v1/models/secret-1"):
            assert (await stack.http.get(target)).status_code == 401


def cors(**changes: Any) -> Any:
    return make_server_config(**{"allowed_origins": ("https://chat.example",), **changes})


async def test_pages_are_not_let_in_unless_the_server_is_told() -> None:
    async with running_stack() as stack:
        preflight = await stack.http.options("/v1/chat/completions", headers=PREFLIGHT)
        answer = await stack.http.get("/v1/models", headers=PAGE)

    assert preflight.status_code == 204
    for response in (preflight, answer):
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("state", ["loaded", "loading", "draining", "dead", "keyed"])
async def test_a_preflight_is_answered_whatever_the_servers_state(state: str) -> None:
    keys = ("secret-1",) if state == "keyed" else ()
    async with running_stack(config=cors(api_keys=keys)) as stack:
        if state == "loading":
            stack.serving.text = None
        if state == "dead":
            stack.serving.client.die(EngineDead("it exploded"))
        stack.serving.is_draining = state == "draining"
        headers = {**PREFLIGHT, "access-control-request-headers": "authorization,content-type"}
        response = await stack.http.options("/v1/chat/completions", headers=headers)

    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://chat.example"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "x-request-id" in response.headers


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, {"origin": "https://evil.example"}),
        ({}, {"origin": "https://chat.example.evil"}),
        ({"allowed_methods": ("GET",)}, {}),
        ({"allowed_headers": ("authorization",)}, {"access-control-request-headers": "x-other"}),
    ],
)
async def test_a_preflight_for_what_is_not_allowed_is_refused(
    changes: dict[str, Any], asked: dict[str, str]
) -> None:
    async with running_stack(config=cors(**changes)) as stack:
        response = await stack.http.options("/v1/models", headers={**PREFLIGHT, **asked})

    assert (response.status_code, response.json()["error"]["code"]) == (400, "cors_not_allowed")
    origin = asked.get("origin", "https://chat.example")
    assert origin in response.json()["error"]["message"]
    allowed = response.headers.get("access-control-allow-origin")
    assert allowed == (None if "origin" in asked else "https://chat.example")


async def test_all_origins_may_be_allowed_with_and_without_credentials() -> None:
    for with_credentials, origin in ((False, "*"), (True, "https://chat.example")):
        config = cors(allowed_origins=("*",), allow_credentials=with_credentials)
        async with running_stack(config=config) as stack:
            response = await stack.http.get("/v1/models", headers={**PAGE, "cookie": "a=b"})
        assert response.headers["access-control-allow-origin"] == origin
        assert ("access-control-allow-credentials" in response.headers) is with_credentials


async def check_readable(response: httpx2.Response, status: int) -> None:
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == "https://chat.example"
    exposed = response.headers["access-control-expose-headers"]
    assert {name.strip() for name in exposed.split(",")} == {"x-request-id", "x-stoker-ignored"}
    assert "Origin" in response.headers["vary"]


async def test_a_page_can_read_every_answer_and_every_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    key = {**PAGE, "authorization": "Bearer secret-1"}
    config = cors(api_keys=("secret-1",), max_request_bytes=100, max_queue=1)
    async with running_stack(config=config) as stack:
        post = stack.http.post
        await check_readable(await post("/v1/completions", json=COMPLETION, headers=key), 200)
        await check_readable(
            await post("/v1/completions", json={**COMPLETION, "stream": True}, headers=key), 200
        )
        await check_readable(await post("/v1/completions", json=COMPLETION, headers=PAGE), 401)
        await check_readable(await post("/v1/completions", content=b"{", headers=key), 400)
        await check_readable(await post("/v1/completions", content=b" " * 1000, headers=key), 413)
        await check_readable(await stack.http.get("/nothing", headers=key), 404)
        await check_readable(await stack.http.get("/v1/completions", headers=key), 405)
        monkeypatch.setattr(stack.serving, "admit", lambda number: 1 / 0)
        await check_readable(await post("/v1/completions", json=COMPLETION, headers=key), 500)
        monkeypatch.undo()
        stack.serving._preparing |= {Record(str(number)) for number in range(100)}
        await check_readable(await post("/v1/completions", json=COMPLETION, headers=key), 429)


async def say_ignored(stack: Stack, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """Let every body have fields that nobody looks at."""
    check = stack.serving.check_model

    def check_and_note(name: str | None) -> None:
        check(name)
        for record in stack.serving._preparing:
            record.ignored += names

    monkeypatch.setattr(stack.serving, "check_model", check_and_note)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_what_is_ignored_is_named_in_one_header_and_in_the_log(
    is_stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="stoker_runtime.request")
    async with running_stack() as stack:
        names = ["cache_prompt", "messages[0].x\r\nset-cookie: a=b", "cache_prompt", "y" * 100]
        await say_ignored(stack, monkeypatch, names)
        response = await stack.http.post("/v1/completions", json={**COMPLETION, "stream": is_stream})

    assert response.status_code == 200
    assert response.headers.get_list("x-stoker-ignored") == [
        "cache_prompt,messages[0].x%0D%0Aset-cookie%3A%20a%3Db," + "y" * 64
    ]
    assert "set-cookie" not in response.headers
    (line,) = [vars(record) for record in caplog.records if record.name == "stoker_runtime.request"]
    assert line["ignored"] == ["cache_prompt", "messages[0].x\r\nset-cookie: a=b", "y" * 64]


async def test_nothing_ignored_is_nothing_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="stoker_runtime.request")
    async with running_stack() as stack:
        response = await stack.http.post("/v1/completions", json=COMPLETION)

    assert "x-stoker-ignored" not in response.headers
    assert not hasattr(caplog.records[-1], "ignored")


async def test_a_refused_request_says_what_was_ignored_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_stack() as stack:
        await say_ignored(stack, monkeypatch, ["a"])
        monkeypatch.setattr(stack.serving, "admit", lambda number: 1 / 0)
        response = await stack.http.post("/v1/completions", json=COMPLETION)

    assert (response.status_code, response.headers["x-stoker-ignored"]) == (500, "a")


async def test_one_server_has_one_model_and_needs_no_name() -> None:
    async with running_stack() as stack:
        for name in (None, "", "dummy"):
            stack.serving.check_model(name)
            response = await stack.http.post("/tokenize", json={"prompt": "a", "model": name})
            assert response.status_code == 200
        wrong = await stack.http.post("/tokenize", json={"prompt": "a", "model": "other"})
        assert (await stack.http.get("/v1/models/dummy")).status_code == 404

    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")
    assert "tiny" in wrong.json()["error"]["message"]


async def test_an_idle_connection_outlives_proxies_and_not_the_server() -> None:
    async with running_stack() as stack:
        async with listening(stack) as url, opened(url) as (reader, writer):
            writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"}")
            assert stack.serving.config.keep_alive_timeout_s > 600
        # The listener is gone, within the deadline of this test's connection: it did not wait for it.
        assert await reader.read() == b""


async def test_the_limit_of_idle_connections_can_be_set() -> None:
    async with running_stack(config=make_server_config(keep_alive_timeout_s=75)) as stack:
        assert uvicorn_config(stack.serving).timeout_keep_alive == 75


async def test_the_openapi_document_says_where_and_with_what_to_ask() -> None:
    async with running_stack(config=keyed(root_path="/llm")) as stack:
        document = (await stack.http.get("/openapi.json")).json()

    assert document["servers"] == [{"url": "/llm"}]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            is_guarded = path.startswith("/v1/") or path in ("/tokenize", "/detokenize")
            assert ("401" in operation["responses"]) is is_guarded
            assert ("security" in operation) is is_guarded


async def test_the_openapi_document_is_true_of_types() -> None:
    async with running_stack() as stack:
        document = (await stack.http.get("/openapi.json")).json()
        assert "servers" not in document
        for path, operations in document["paths"].items():
            assert set(operations) <= {"get", "post"}
            if "get" in operations:
                answer = await stack.http.get(path.replace("{model}", "tiny"))
                kind = answer.headers["content-type"].partition(";")[0]
                assert list(operations["get"]["responses"]["200"]["content"]) == [kind]
    streamed = document["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"]
    assert set(streamed) == {"application/json", "text/event-stream"}
    assert server_app._METRICS_TYPE.startswith("text/plain")


async def test_model_cards_have_what_vllms_have() -> None:
    config = make_server_config(model="hf://org/name", served_model_names=("a", "b"))
    async with running_stack(config=config) as stack:
        first, second = (await stack.http.get("/v1/models")).json()["data"]
        again = (await stack.http.get("/v1/models/a")).json()

    assert first == again
    assert (first["root"], second["root"], first["parent"]) == ("hf://org/name", "hf://org/name", None)
    assert first["permission"][0]["object"] == "model_permission"
    assert first["permission"][0]["allow_sampling"] is True
    assert first["permission"][0]["allow_fine_tuning"] is False
    assert first["permission"][0]["id"] != second["permission"][0]["id"]
    assert (first["max_model_len"], first["owned_by"]) == (256, "stoker")


async def test_load_counts_what_is_in_flight_under_both_names() -> None:
    engine = FakeEngine()
    engine.may_step.clear()
    async with running_stack(engine) as stack, listening(stack) as url, opened(url) as (_, writer):
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        await until(lambda: stack.serving.in_flight == 1)
        load = (await stack.http.get("/load")).json()

    assert load == {"in_flight": 1, "server_load": 1, "waiting": 0, "draining": False}
