"""The server as a process: start, drain, and every way to end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from raw_http import opened
from server_process import DEADLINE_S, ServerProcess, make_model_folder, server_process, until_status

pytestmark = pytest.mark.slow

LONG = {"model": "tiny", "prompt": "a", "max_tokens": 200, "ignore_eos": True}
ENDLESS = {**LONG, "max_tokens": 4000}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The text side of a model as a Hugging Face directory."""
    return make_model_folder(tmp_path / "model")


async def until_in_flight(http: httpx2.AsyncClient, condition: Callable[[int], bool]) -> None:
    pause = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S):
        while not condition((await http.get("/load")).json()["in_flight"]):
            try:
                await asyncio.wait_for(pause.wait(), 0.02)
            except TimeoutError:
                continue


async def engine_pid(server: ServerProcess) -> int:
    pid = (await server.until_logged("started the engine"))["engine_pid"]
    assert isinstance(pid, int)
    return pid


async def read_stream(http: httpx2.AsyncClient, body: dict[str, object], started: asyncio.Event) -> list[Any]:
    events: list[Any] = []
    async with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                events.append(data if data == "[DONE]" else json.loads(data))
                started.set()
    return events


async def test_a_drain_loses_no_stream_and_no_late_request(model: Path, tmp_path: Path) -> None:
    async with server_process(model, tmp_path, shutdown_delay_s=1.0) as (server, http):
        await until_status(http, "/ready", 200)
        started = asyncio.Event()
        streams = [asyncio.create_task(read_stream(http, LONG, started)) for _ in range(3)]
        await started.wait()

        server.terminate()
        unready = await until_status(http, "/ready", 503)
        late = await http.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
        events = await asyncio.gather(*streams)
        status = await server.until_ended()

    assert unready.json() == {"reason": "Draining"}
    assert (late.status_code, late.headers["connection"]) == (200, "close")
    for stream in events:
        assert stream[-1] == "[DONE]"
        assert stream[-2]["choices"][0]["finish_reason"] == "length"
    assert status == 0
    assert not server.termination_log.exists()


async def test_after_the_delay_no_connection_is_taken(model: Path, tmp_path: Path) -> None:
    async with server_process(model, tmp_path, shutdown_delay_s=0.0) as (server, http):
        await until_status(http, "/ready", 200)
        started = asyncio.Event()
        stream = asyncio.create_task(read_stream(http, {**ENDLESS, "max_tokens": 1000}, started))
        await started.wait()

        server.terminate()
        await server.until_logged("draining")
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    async with httpx2.AsyncClient(base_url=http.base_url) as newcomer:
                        await newcomer.get("/load")
                except httpx2.ConnectError:
                    break
        assert not stream.done()
        assert (await stream)[-1] == "[DONE]"
        assert await server.until_ended() == 0


async def test_tokens_of_steps_add_up_as_vllms_do(model: Path, tmp_path: Path) -> None:
    body = {"model": "tiny", "prompt": "123456789", "max_tokens": 10, "ignore_eos": True}
    async with server_process(model, tmp_path) as (_, http):
        await until_status(http, "/ready", 200)
        answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(10)))
        text = (await http.get("/metrics")).text

    assert {answer.json()["usage"]["total_tokens"] for answer in answers} == {19}
    assert 'vllm:iteration_tokens_total_sum{engine="0",model_name="tiny"} 190.0' in text.splitlines()


async def test_an_idle_connection_does_not_hold_up_the_end(model: Path, tmp_path: Path) -> None:
    async with server_process(model, tmp_path, shutdown_delay_s=0.0) as (server, http):
        await until_status(http, "/ready", 200)
        assert http.base_url.port is not None
        async with opened(f"http://{http.base_url.host}:{http.base_url.port}") as (reader, writer):
            writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"}")
            server.terminate()

            assert await server.until_ended() == 0  # within a tenth of what an idle connection may last
            assert await reader.read() == b""


async def test_what_outlives_the_deadline_ends_with_an_error_event(model: Path, tmp_path: Path) -> None:
    async with server_process(model, tmp_path, shutdown_delay_s=0.0, drain_timeout_s=0.2) as (server, http):
        await until_status(http, "/ready", 200)
        started = asyncio.Event()
        stream = asyncio.create_task(read_stream(http, ENDLESS, started))
        whole = asyncio.create_task(http.post("/v1/completions", json=ENDLESS))
        await started.wait()
        await until_in_flight(http, lambda number: number == 2)

        server.terminate()
        events, response, status = await asyncio.gather(stream, whole, server.until_ended())

    assert events[-1]["error"]["code"] == "shutting_down"
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
    assert status == 0


async def test_a_second_signal_ends_the_wait(model: Path, tmp_path: Path) -> None:
    async with server_process(model, tmp_path, shutdown_delay_s=1000.0) as (server, http):
        await until_status(http, "/ready", 200)
        server.terminate()
        await server.until_logged("draining")
        server.terminate()

        assert await server.until_ended() == 0


async def test_an_engine_that_crashes_ends_streams_and_the_process(model: Path, tmp_path: Path) -> None:
    async with server_process(model, tmp_path) as (server, http):
        await until_status(http, "/ready", 200)
        started = asyncio.Event()
        stream = asyncio.create_task(read_stream(http, ENDLESS, started))
        whole = asyncio.create_task(http.post("/v1/completions", json=ENDLESS))
        await started.wait()
        await until_in_flight(http, lambda number: number == 2)

        os.kill(await engine_pid(server), signal.SIGKILL)
        events, response, status = await asyncio.gather(stream, whole, server.until_ended())

    assert events[-1]["error"]["code"] == "engine_dead"
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_dead")
    assert status == 1
    assert server.termination["reason"] == "EngineCrashed"
    assert "SIGKILL" in server.termination["message"]


async def test_a_model_that_cannot_be_loaded_is_the_exit_status(model: Path, tmp_path: Path) -> None:
    async with server_process(model, tmp_path, engine_fails="load") as (server, _):
        assert await server.until_ended() == 3

    assert server.termination == {"reason": "InvalidModel", "message": "tensor q_proj is missing"}


async def test_a_tokenizer_that_cannot_be_loaded_is_the_exit_status(tmp_path: Path) -> None:
    async with server_process(tmp_path, tmp_path) as (server, _):
        assert await server.until_ended() == 3

    assert server.termination["reason"] == "UnsupportedModel"


async def test_a_chat_template_that_cannot_be_read_is_a_wrong_setting(model: Path, tmp_path: Path) -> None:
    async with server_process(model, tmp_path, chat_template=str(tmp_path / "gone.jinja")) as (server, _):
        assert await server.until_ended() == 2

    assert server.termination["reason"] == "InvalidConfig"
    assert server.termination["message"].startswith("--chat-template is ")


async def test_the_operators_chat_template_is_served_with(model: Path, tmp_path: Path) -> None:
    own = "{{ messages[0].content }}"
    sanitized = server_process(model, tmp_path, chat_template=own, sanitize_control_tokens=True)
    async with sanitized as (_, http):
        await until_status(http, "/ready", 200)
        messages = [{"role": "user", "content": "<|end|>"}]
        answer = await http.post("/tokenize", json={"model": "tiny", "messages": messages})

    assert answer.json()["count"] == len("<|end|>")


async def test_a_killed_server_takes_its_engine_along(model: Path, tmp_path: Path) -> None:
    async with server_process(model, tmp_path) as (server, http):
        await until_status(http, "/ready", 200)
        descriptor = os.pidfd_open(await engine_pid(server))
        server.process.kill()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)


async def test_a_port_in_use_is_a_wrong_setting(model: Path, tmp_path: Path) -> None:
    async with server_process(model, tmp_path) as (_, http):
        port = http.base_url.port
        with pytest.raises(AssertionError, match="ended without logging"):
            async with server_process(model, tmp_path, port=port):
                pass

    message = json.loads((tmp_path / "termination.json").read_text())
    assert message["reason"] == "InvalidConfig"
    assert f"--port {port}" in message["message"]
