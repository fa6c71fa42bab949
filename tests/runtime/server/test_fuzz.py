"""Requests made from the server's own OpenAPI document, right and wrong ones: no 5xx, nothing left behind."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from model_builders import write_model
from real_engine import real_stack
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from server_engine import DEADLINE_S, FakeEngine, HasServing, listening, running_stack, until

pytestmark = pytest.mark.slow

START_S = 120.0  # importing torch takes most of a minute on a machine that is busy

POSTS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
GETS = ("/v1/models", "/v1/models/{model}", "/health", "/ready", "/load", "/metrics", "/version")
# Bodies of a few hundred bytes, with the model's real name: most of them get past the first check.
SMALL = {
    "model": {"type": "string", "enum": ["tiny"]},
    "n": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 8}]},
}


@asynccontextmanager
async def fake(folder: Path) -> AsyncIterator[HasServing]:
    engine = FakeEngine(reply=lambda request: [65, 0xC3, 258, 300, 257])
    async with running_stack(engine) as stack:
        yield stack


@asynccontextmanager
async def real(folder: Path) -> AsyncIterator[HasServing]:
    """A model of two layers whose answers end only where the model's length does, and few KV blocks."""
    write_model(folder, "llama", vocab_size=264)
    async with real_stack(folder, num_blocks=24, max_num_seqs=8, max_model_len=40) as stack:
        yield stack


@pytest.fixture(scope="module", params=[fake, real], ids=["fake-engine", "real-engine"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A listening server in a thread of its own: schemathesis calls it like any client."""
    started: Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Queue()

    async def serve() -> None:
        stop = asyncio.Event()
        async with request.param(tmp_path_factory.mktemp("model")) as stack, listening(stack) as url:
            started.put((url, asyncio.get_running_loop(), stop))
            await stop.wait()
            await until(lambda: stack.serving.in_flight == 0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    url, loop, stop = started.get(timeout=START_S)
    yield url
    loop.call_soon_threadsafe(stop.set)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx2.Client]:
    """One for all: a new one reads every authority of this machine, which takes longer than its request."""
    with httpx2.Client(base_url=url, timeout=DEADLINE_S, verify=False) as http:
        yield http


@pytest.fixture(scope="module")
def document(http: httpx2.Client) -> dict[str, Any]:
    """The server's document, narrowed to what this server's model takes."""
    document: dict[str, Any] = http.get("/openapi.json").json()
    for name in ("ChatBody", "CompletionBody"):
        document["components"]["schemas"][name]["properties"].update(SMALL)
    return document


def held(http: httpx2.Client) -> dict[str, float]:
    """What the server and its engine hold at this moment, by the name that reports it."""
    lines = http.get("/metrics").text.splitlines()
    found = (re.fullmatch(r"(vllm:(?:kv_cache|num_requests)_\w+)\{.*\} (.*)", line) for line in lines)
    gauges = {match[1]: float(match[2]) for match in found if match}
    return {"in_flight": http.get("/load").json()["in_flight"], **gauges}


def check_nothing_is_left(http: httpx2.Client) -> None:
    """A request is counted as answered after its last byte, its blocks with the engine's next report."""
    nothing = {
        "in_flight": 0,
        "vllm:num_requests_running": 0,
        "vllm:num_requests_waiting": 0,
        "vllm:num_requests_waiting_by_reason": 0,
        "vllm:kv_cache_usage_perc": 0,
    }
    deadline_s = time.monotonic() + DEADLINE_S
    while (found := held(http)) != nothing and time.monotonic() < deadline_s:
        pass
    assert found == nothing


def cases(document: dict[str, Any], path: str, method: str) -> st.SearchStrategy[Case]:
    operation = schemathesis.openapi.from_dict(document)[path][method]
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    return st.one_of(right, wrong) if method == "POST" else right


def check(case: Case, http: httpx2.Client) -> int:
    response = case.call(base_url=str(http.base_url).rstrip("/"), timeout=DEADLINE_S)

    # Not that what the document does not promise is refused: a body is taken as far as it can be.
    checks = [not_a_server_error, response_schema_conformance, status_code_conformance]
    case.validate_response(response, checks=checks)
    if response.status_code >= 400:
        assert list(response.json()) == ["error"]
    assert http.get("/health").status_code == 200
    return int(response.status_code)


# Bodies for each of four routes and two engines; the many are over a thousand.
FEW, MANY = 40, pytest.param(130, marks=pytest.mark.long)
FUZZ = settings(
    max_examples=FEW,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
    derandomize=True,
)


@pytest.mark.parametrize("num_bodies", [FEW, MANY])
@pytest.mark.parametrize("path", POSTS)
def test_no_body_brings_the_server_down(
    path: str, num_bodies: int, http: httpx2.Client, document: dict[str, Any]
) -> None:
    seen: set[int] = set()

    @settings(FUZZ, max_examples=num_bodies)
    @given(case=cases(document, path, "POST"))
    def run(case: Case) -> None:
        seen.add(check(case, http))

    run()
    assert {200, 400} <= seen  # both got through to where they were meant to
    check_nothing_is_left(http)


KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0, 1, 2.5, "0.7", None]),
    "top_p": st.sampled_from([0, 0.5, 1]),
    "n": st.integers(1, 3),
    "seed": st.integers(-1, 2**70),
    "stop": st.lists(st.text(max_size=5) | st.none(), max_size=9),
    "stream": st.booleans(),
    "logit_bias": st.dictionaries(st.integers(0, 9).map(str), st.floats(-200, 200), max_size=3),
    "bad_words": st.lists(st.text(max_size=4), max_size=3),
    "allowed_token_ids": st.lists(st.integers(0, 250), min_size=1, max_size=4),
    "mirostat": st.sampled_from([0, None]),
    "store": st.booleans(),
    "user": st.none() | st.text(max_size=9) | st.integers(),
}
ANY_JSON = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
UNKNOWN = st.dictionaries(
    st.text(min_size=1, max_size=12).map(lambda name: f"x_{name}"), ANY_JSON, max_size=5
)


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"prompt": [1, 2, 3]}),
    ],
)
def test_unknown_fields_beside_known_ones_are_named(
    path: str, prompt: dict[str, Any], http: httpx2.Client
) -> None:
    @FUZZ
    @given(known=st.fixed_dictionaries({}, optional=KNOWN), unknown=UNKNOWN)
    def run(known: dict[str, Any], unknown: dict[str, Any]) -> None:
        body = {**unknown, **prompt, "max_tokens": 2, **known}
        response = http.post(path, json=body)

        assert response.status_code == 200, response.text
        named = [unquote(name.strip()) for name in response.headers.get("x-stoker-ignored", "").split(",")]
        assert set(unknown) <= set(named)
        assert not {*prompt, *KNOWN} & set(named) - {"store"}
        assert http.get("/health").status_code == 200

    run()
    check_nothing_is_left(http)


@pytest.mark.parametrize("path", GETS)
def test_every_other_route_answers(path: str, http: httpx2.Client, document: dict[str, Any]) -> None:
    @settings(FUZZ, max_examples=10)
    @given(case=cases(document, path, "GET"))
    def run(case: Case) -> None:
        check(case, http)

    run()
