from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from runtime_builders import make_request
from server_engine import FakeEngine, Stack, listening, make_server_config, running_stack, until

from stoker_runtime import __version__, logs
from stoker_runtime.errors import EngineDead, RequestError
from stoker_runtime.messages import EngineStats, FinishReason, RequestOutput, StepOutputs
from stoker_runtime.server.wire import CompletionShape

IDLE = {"in_flight": 0, "server_load": 0, "waiting": 0, "draining": False}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


async def get(stack: Stack, path: str) -> tuple[int, Any]:
    response = await stack.http.get(path)
    return response.status_code, response.json()


async def sample(stack: Stack, name: str) -> float:
    """Read one metric with the labels of this server."""
    lines = (await stack.http.get("/metrics")).text.splitlines()
    values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(name)]
    assert len(values) == 1, f"{name}: {values}"
    return float(values[0])


async def test_a_loaded_server_is_healthy_and_ready() -> None:
    async with running_stack() as stack:
        assert await get(stack, "/health") == (200, {"status": "ok"})
        assert await get(stack, "/ready") == (200, {"status": "ready"})
        assert await get(stack, "/load") == (200, IDLE)
        assert await get(stack, "/version") == (200, {"version": __version__})


async def test_a_loading_server_is_healthy_but_not_ready_and_refuses_for_now() -> None:
    async with running_stack() as stack:
        stack.serving.text = None

        assert await get(stack, "/health") == (200, {"status": "ok"})
        assert await get(stack, "/ready") == (503, {"reason": "LoadingModel"})
        response = await stack.http.post("/v1/chat/completions", json=CHAT)

    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"]["code"] == "loading"


async def test_a_draining_server_is_not_ready_still_serves_and_closes_connections() -> None:
    async with running_stack() as stack:
        stack.serving.is_draining = True

        assert await get(stack, "/ready") == (503, {"reason": "Draining"})
        response = await stack.http.post("/v1/chat/completions", json=CHAT)

    assert response.status_code == 200
    assert response.headers["connection"] == "close"


async def test_a_dead_engine_makes_everything_unavailable() -> None:
    async with running_stack() as stack:
        stack.serving.client.die(EngineDead("it exploded"))

        assert await get(stack, "/health") == (
            503,
            {"status": "unhealthy", "reason": "EngineDead: it exploded"},
        )
        assert await get(stack, "/ready") == (503, {"reason": "EngineDead"})
        response = await stack.http.post("/v1/chat/completions", json=CHAT)

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_dead"


async def test_a_silent_engine_is_neither_healthy_nor_ready() -> None:
    async with running_stack() as stack:
        stack.serving.client._silence_limit_s = -1.0

        assert await get(stack, "/health") == (503, {"status": "unhealthy", "reason": "EngineSilent"})
        assert await get(stack, "/ready") == (503, {"reason": "EngineSilent"})


async def test_models_are_listed_by_every_name() -> None:
    async with running_stack(config=make_server_config(served_model_names=("a", "org/b"))) as stack:
        _, listed = await get(stack, "/v1/models")
        assert [(card["id"], card["object"], card["max_model_len"]) for card in listed["data"]] == [
            ("a", "model", 256),
            ("org/b", "model", 256),
        ]
        assert (await get(stack, "/v1/models/org/b"))[1] == listed["data"][1]


async def test_tokenize_and_detokenize_are_each_others_inverse() -> None:
    async with running_stack() as stack:
        tokenized = (await stack.http.post("/tokenize", json={"prompt": "a\u00e9<|end|>"})).json()
        response = await stack.http.post("/detokenize", json={"tokens": tokenized["tokens"]})

    ids = stack.ids("a\u00e9<|end|>")
    assert tokenized == {"count": 4, "max_model_len": 256, "tokens": ids, "token_strs": None}
    assert response.json() == {"prompt": "a\u00e9<|end|>"}


async def test_tokenize_renders_messages_and_names_tokens() -> None:
    messages = [{"role": "user", "content": "a"}]
    async with running_stack() as stack:
        response = await stack.http.post(
            "/tokenize",
            json={"messages": messages, "add_generation_prompt": False, "return_token_strs": True},
        )

    assert response.json()["tokens"] == stack.ids("<|start|>user\na<|end|>\n")
    assert response.json()["token_strs"][0] == "<|start|>"


async def test_a_full_queue_is_a_429_and_empties_again() -> None:
    engine = FakeEngine(max_running=2)
    engine.may_step.clear()
    async with running_stack(engine, config=make_server_config(max_queue=1)) as stack:
        serving = stack.serving
        for _ in range(3):
            serving.admit(1)
            serving.client.submit([make_request([1])])
        full = await stack.http.post("/v1/chat/completions", json=CHAT)
        engine.may_step.set()
        await until(lambda: serving.client.num_live == 0)
        free = await stack.http.post("/v1/chat/completions", json=CHAT)

        assert await sample(stack, "vllm:admission_rejections_total") == 1

    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert full.json()["error"]["type"] == "rate_limit_error"
    assert free.status_code == 200


async def test_a_saturated_engine_counts_only_what_it_runs() -> None:
    engine = FakeEngine(max_running=1)
    engine.may_step.clear()
    async with running_stack(engine, config=make_server_config(max_queue=2)) as stack:
        # KV is short: of 64 requests that may run, one does and two wait.
        stack.serving.max_running = 64
        for _ in range(3):
            stack.serving.client.submit([make_request([1])])
        await until(lambda: stack.serving.client.stats.num_waiting == 2)

        response = await stack.http.post("/v1/chat/completions", json=CHAT)

    assert response.status_code == 429


async def test_the_places_of_a_step_that_all_ended_in_are_free() -> None:
    async with running_stack(config=make_server_config(max_queue=2)) as stack:
        stack.engine.may_step.clear()
        for _ in range(2):
            stack.serving.client.submit([make_request([1])])
        stack.serving.client.stats = EngineStats(num_running=0, num_in_step=1, num_waiting=2)

        stack.serving.admit(1)
        with pytest.raises(RequestError, match="2 requests are waiting"):
            stack.serving.admit(2)


async def post_without_body(url: str, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode())
    return reader, writer


async def test_requests_whose_body_is_still_coming_count_as_waiting() -> None:
    engine = FakeEngine(max_running=1)
    config = make_server_config(max_queue=1)
    async with running_stack(engine, config=config) as stack, listening(stack) as url:
        opened = [await post_without_body(url, "/v1/completions") for _ in range(2)]
        await until(lambda: stack.serving.in_flight == 2)

        refused = await stack.http.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
        tokenized = await stack.http.post("/tokenize", json={"prompt": "a"})
        for _, writer in opened:
            writer.close()
        await until(lambda: stack.serving.in_flight == 0)
        served = await stack.http.post("/v1/completions", json={"model": "tiny", "prompt": "a"})

        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert (
            await sample(stack, 'http_requests_total{handler="/v1/completions",method="POST",status="4xx"')
            > 0
        )
    assert (tokenized.status_code, served.status_code) == (200, 200)


async def test_only_so_many_texts_are_tokenized_at_once() -> None:
    async with running_stack(config=make_server_config(max_queue=1)) as stack, listening(stack) as url:
        _, writer = await post_without_body(url, "/detokenize")
        await until(lambda: stack.serving.refusal("tokens") is not None)

        refused = await stack.http.post("/tokenize", json={"prompt": "a"})
        inferred = await stack.http.post("/v1/chat/completions", json=CHAT)
        writer.close()
        await until(lambda: stack.serving.refusal("tokens") is None)

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert inferred.status_code == 200


async def test_nothing_is_started_once_the_drain_is_over() -> None:
    async with running_stack() as stack:
        stack.serving.is_closed = True
        response = await stack.http.post("/v1/chat/completions", json=CHAT)

        assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
        assert stack.engine.added == []


async def test_a_request_larger_than_the_queue_is_a_400() -> None:
    engine = FakeEngine(max_running=2)
    async with running_stack(engine, config=make_server_config(max_queue=1)) as stack:
        response = await stack.http.post("/v1/chat/completions", json={**CHAT, "n": 4})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"


async def test_metrics_carry_vllms_names_and_the_engines_stats() -> None:
    async with running_stack() as stack:
        stats = EngineStats(
            num_running=3,
            num_waiting=2,
            kv_usage=0.25,
            num_preemptions=4,
            prefix_queries=9,
            prefix_hits=5,
            num_drafts=3,
            num_draft_tokens=8,
            num_accepted_tokens=6,
        )
        stack.engine.send(StepOutputs(outputs=[], stats=stats))
        await until(lambda: stack.serving.client.stats == stats)

        text = (await stack.http.get("/metrics")).text
        labels = '{engine="0",model_name="tiny"}'
        for name, value in {
            "vllm:num_requests_running": 3.0,
            "vllm:num_requests_waiting": 2.0,
            "vllm:kv_cache_usage_perc": 0.25,
            "vllm:num_preemptions_total": 4.0,
            "vllm:prefix_cache_queries_total": 9.0,
            "vllm:prefix_cache_hits_total": 5.0,
            "vllm:spec_decode_num_drafts_total": 3.0,
            "vllm:spec_decode_num_draft_tokens_total": 8.0,
            "vllm:spec_decode_num_accepted_tokens_total": 6.0,
        }.items():
            assert f"{name}{labels} {value}" in text.splitlines()
        assert 'vllm:cache_config_info{block_size="16",cache_dtype="float32"' in text


async def test_a_finished_request_is_measured() -> None:
    async with running_stack() as stack:
        stack.say("abc")
        await stack.http.post("/v1/completions", json={"model": "tiny", "prompt": "xy", "n": 2})

        assert await sample(stack, "vllm:prompt_tokens_total") == 4
        assert await sample(stack, "vllm:generation_tokens_total") == 8
        assert await sample(stack, 'vllm:request_success_total{engine="0",finished_reason="stop"') == 2
        for name in (
            "time_to_first_token",
            "request_time_per_output_token",
            "e2e_request_latency",
            "request_queue_time",
            "request_prefill_time",
            "request_decode_time",
            "request_inference_time",
        ):
            assert await sample(stack, f"vllm:{name}_seconds_count") == 2
        assert await sample(stack, "vllm:inter_token_latency_seconds_count") == 6
        assert await sample(stack, "vllm:time_per_output_token_seconds_count") == 6
        assert await sample(stack, "vllm:request_prompt_tokens_sum") == 4
        assert await sample(stack, "vllm:request_generation_tokens_sum") == 8
        assert await sample(stack, "vllm:request_params_n_sum") == 2
        assert await sample(stack, "vllm:request_params_n_count") == 1
        assert await sample(stack, "vllm:request_params_max_tokens_sum") == 32
        assert await sample(stack, "vllm:request_max_num_generation_tokens_sum") == 4
        assert await sample(stack, "vllm:request_queue_time_seconds_sum") == 0.5
        assert await sample(stack, 'http_requests_total{handler="/v1/completions"') == 1


async def test_each_step_is_measured_once() -> None:
    body = {"model": "tiny", "prompt": "123456789", "max_tokens": 10, "ignore_eos": True}
    async with running_stack() as stack:
        for _ in range(3):
            response = await stack.http.post("/v1/completions", json=body)
            assert response.json()["usage"]["completion_tokens"] == 10
            stack.engine.send_stats()  # a heartbeat is no step

        # As vLLM counts: prompt and output tokens; the fake engine says that it had 4 of 9 in its cache.
        assert await sample(stack, "vllm:iteration_tokens_total_count") == 30
        assert await sample(stack, "vllm:iteration_tokens_total_sum") == 3 * (9 - 4 + 10)
        assert await sample(stack, 'vllm:iteration_tokens_total_bucket{engine="0",le="1.0"') == 27


async def test_what_was_given_up_is_not_measured_as_a_step() -> None:
    engine = FakeEngine(reply=lambda request: [65] * 10)
    engine.may_step.clear()
    async with running_stack(engine) as stack:
        request = make_request([1, 2, 3])
        ticket = stack.serving.client.submit([request])
        ticket.close()
        stray = RequestOutput(request_id=request.request_id, token_ids=[5])
        engine.send(StepOutputs(outputs=[stray], stats=EngineStats(num_steps=7)))
        await until(lambda: stack.serving.client.stats.num_steps == 7)

        assert await sample(stack, "vllm:iteration_tokens_total_count") == 0
        assert stack.serving.client._prompts == {}


async def test_preemptions_and_waiting_have_vllms_names() -> None:
    engine = FakeEngine()
    engine.may_step.clear()
    async with running_stack(engine) as stack:
        asking = asyncio.create_task(
            stack.http.post("/v1/completions", json={"prompt": "a", "model": "tiny"})
        )
        await engine.until(lambda: len(engine.added) == 1)
        output = RequestOutput(
            request_id=engine.added[0].request_id,
            token_ids=[257],
            finish_reason=FinishReason.STOP,
            stop_token_id=257,
            num_preemptions=3,
        )
        engine.send(StepOutputs(outputs=[output], stats=EngineStats(num_waiting=5)))
        await asking

        assert await sample(stack, "vllm:request_num_preemptions_sum") == 3
        assert await sample(stack, "vllm:request_num_preemptions_count") == 1
        by_reason = 'vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason='
        assert await sample(stack, by_reason + '"capacity"') == 5
        assert await sample(stack, by_reason + '"deferred"') == 0
        assert await sample(stack, "vllm:admission_rejections_total") == 0


async def test_the_servers_process_is_measured() -> None:
    async with running_stack() as stack:
        assert await sample(stack, "process_resident_memory_bytes") > 2**20


async def test_request_ids_are_kept_when_plain_and_made_when_not() -> None:
    async with running_stack() as stack:
        kept = await stack.http.get("/version", headers={"x-request-id": "abc-1"})
        made = await stack.http.get("/version", headers={b"x-request-id": b"a b\xff"})

    assert kept.headers["x-request-id"] == "abc-1"
    assert len(made.headers["x-request-id"]) == 32


async def test_one_log_line_tells_how_a_request_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="stoker_runtime.request")
    async with running_stack() as stack:
        stack.say("ab")
        await stack.http.post(
            "/v1/chat/completions",
            json={
                **CHAT,
                "user": "ann",
                "metadata": {"team": "a"},
                "safety_identifier": "s",
                "prompt_cache_key": "k",
                "stream": True,
            },
            headers={"x-request-id": "abc"},
        )
        await stack.http.get("/health")

    lines = [vars(record) for record in caplog.records if record.name == "stoker_runtime.request"]
    assert len(lines) == 1
    fields = ("request_id", "method", "path", "status", "stream", "output_tokens", "finish_reasons", "user")
    labels = ("metadata", "safety_identifier", "prompt_cache_key")
    assert {name: lines[0][name] for name in (*fields, *labels)} == {
        "request_id": "abc",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "stream": True,
        "output_tokens": 3,
        "finish_reasons": ["stop"],
        "user": "ann",
        "metadata": {"team": "a"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
    }
    assert lines[0]["ttft_s"] >= 0


async def test_whatever_is_logged_for_a_request_carries_its_id(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.handler.addFilter(logs.add_request_id)
    try:
        async with running_stack() as stack:
            monkeypatch.setattr(CompletionShape, "usage_event", lambda *_: 1 / 0)
            await stack.http.post(
                "/v1/completions",
                json={
                    "model": "tiny",
                    "prompt": "a",
                    "stream": True,
                    "stream_options": {"include_usage": True},
                },
                headers={"x-request-id": "abc"},
            )
        logging.getLogger("x").warning("after it")
    finally:
        caplog.handler.removeFilter(logs.add_request_id)

    ids = {record.getMessage(): getattr(record, "request_id", None) for record in caplog.records}
    assert (ids["a stream failed"], ids["after it"]) == ("abc", None)


async def test_the_engines_requests_are_named_after_the_clients() -> None:
    async with running_stack() as stack:
        for _ in range(2):
            await stack.http.post(
                "/v1/completions",
                json={"model": "tiny", "prompt": "a", "n": 2},
                headers={"x-request-id": "abc"},
            )

    names = [request.request_id for request in stack.engine.added]
    assert len(set(names)) == 4
    assert all(name.startswith("abc.") for name in names)


async def test_a_failure_of_ours_is_a_500_that_tells_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_stack() as stack:
        monkeypatch.setattr(
            stack.serving, "admit", lambda number: (_ for _ in ()).throw(ValueError("secret"))
        )
        response = await stack.http.post("/v1/chat/completions", json=CHAT)

        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert "secret" not in response.text
        assert "secret" in caplog.text
        assert await get(stack, "/load") == (200, IDLE)


async def test_the_openapi_document_has_every_route_and_body() -> None:
    async with running_stack() as stack:
        _, document = await get(stack, "/openapi.json")

    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/health", "/load"} <= set(
        document["paths"]
    )
    assert {"ChatBody", "CompletionBody", "TokenizeBody", "DetokenizeBody", "Error"} <= set(
        document["components"]["schemas"]
    )
