from typing import Any

import pytest

from stoker_runtime.config import (
    MAX_CPU_KV_CACHE_BYTES,
    EngineConfig,
    ServerConfig,
    parse_bytes,
    root_path_of,
)
from stoker_runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param({"device": "tpu"}, "--device", id="device"),
        pytest.param({"dtype": "int8"}, "--dtype", id="dtype"),
        pytest.param({"log_level": "loud"}, "--log-level", id="log-level"),
        pytest.param({"max_model_len": -1}, "--max-model-len", id="negative-length"),
        pytest.param({"max_model_len": 1}, "--max-model-len", id="no-room-for-output"),
        pytest.param({"max_num_seqs": -1}, "--max-num-seqs", id="negative-seqs"),
        pytest.param({"max_num_batched_tokens": -1}, "--max-num-batched-tokens", id="negative-budget"),
        pytest.param(
            {"max_prefill_tokens_beside_decodes": -1},
            "--max-prefill-tokens-beside-decodes",
            id="negative-beside",
        ),
        pytest.param({"long_prompt_tokens": -1}, "--long-prompt-tokens", id="negative-long"),
        pytest.param({"max_recorded_tokens": -1}, "--max-recorded-tokens", id="negative-recorded"),
        pytest.param(
            {"max_num_seqs": 9, "max_num_batched_tokens": 8}, "--max-num-batched-tokens", id="budget"
        ),
        pytest.param({"block_size": 0}, "--block-size", id="no-block"),
        pytest.param({"block_size": 1025}, "--block-size", id="large-block"),
        pytest.param({"memory_fraction": 0.0}, "--memory-fraction", id="no-memory"),
        pytest.param({"memory_fraction": 1.1}, "--memory-fraction", id="more-than-all-memory"),
        pytest.param({"memory_fraction": float("nan")}, "--memory-fraction", id="nan"),
        pytest.param({"kv_cache_dtype": "int8"}, "--kv-cache-dtype", id="kv-dtype"),
        pytest.param({"kv_cache_bytes": -1}, "--kv-cache-memory", id="kv"),
        pytest.param({"num_threads": 0}, "--num-threads", id="threads"),
        pytest.param({"seed": -1}, "--seed", id="seed"),
        pytest.param({"kernel_choices": "fastest"}, "--kernel-choices", id="kernel-choices"),
        pytest.param({"async_scheduling": "maybe"}, "--async-scheduling", id="async-scheduling"),
        pytest.param(
            {"async_scheduling": "on", "speculative": "ngram"}, "--speculative", id="async-and-speculative"
        ),
    ],
)
def test_engine_setting_that_cannot_work_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        EngineConfig(model="/model", **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param({"served_model_names": ()}, "--served-model-name", id="no-name"),
        pytest.param({"served_model_names": ("a", " ")}, "--served-model-name", id="blank-name"),
        pytest.param({"port": 65536}, "--port", id="port"),
        pytest.param({"log_level": "loud"}, "--log-level", id="log-level"),
        pytest.param({"max_queue": 0}, "--max-queue", id="queue"),
        pytest.param({"max_request_bytes": 0}, "--max-request-bytes", id="body"),
        pytest.param({"shutdown_delay_s": -1.0}, "--shutdown-delay-s", id="delay"),
        pytest.param({"sse_keep_alive_s": -1.0}, "--sse-keep-alive-s", id="keep-alive"),
        pytest.param({"chat_template": " "}, "--chat-template", id="chat-template"),
        pytest.param({"drain_timeout_s": float("nan")}, "--drain-timeout-s", id="nan"),
        pytest.param({"keep_alive_timeout_s": 0}, "--keep-alive-timeout-s", id="no-keep-alive"),
        pytest.param({"keep_alive_timeout_s": -1}, "--keep-alive-timeout-s", id="negative-keep-alive"),
        pytest.param({"root_path": "llm"}, "--root-path", id="root-without-slash"),
        pytest.param({"root_path": "/llm/"}, "--root-path", id="root-with-slash-behind"),
        pytest.param({"root_path": "/a/../b"}, "--root-path", id="root-with-dots"),
        pytest.param({"root_path": "/a?b"}, "--root-path", id="root-with-query"),
        pytest.param({"api_keys": ("",)}, "--api-key", id="empty-key"),
        pytest.param({"api_keys": ("good", "not good")}, "--api-key", id="key-with-space"),
        pytest.param({"api_keys": ("schl\u00fcssel",)}, "--api-key", id="key-beyond-ascii"),
        pytest.param({"allowed_origins": ("chat.example",)}, "--allowed-origins", id="no-scheme"),
        pytest.param({"allowed_origins": ("https://a.example/x",)}, "--allowed-origins", id="origin-path"),
        pytest.param({"allowed_origins": ("https://*.example",)}, "--allowed-origins", id="wildcard"),
        pytest.param(
            {"allowed_origins": ("*",), "allowed_methods": ("GET POST",)}, "--allowed-methods", id="methods"
        ),
        pytest.param({"allowed_origins": ("*",), "allowed_headers": ()}, "--allowed-headers", id="headers"),
        pytest.param({"allow_credentials": True}, "--allowed-origins", id="credentials-of-nobody"),
        pytest.param({"allowed_methods": ("GET",)}, "--allowed-origins", id="methods-of-nobody"),
        pytest.param({"allowed_headers": ("x-a",)}, "--allowed-origins", id="headers-of-nobody"),
    ],
)
def test_server_setting_that_cannot_work_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ServerConfig(**{"served_model_names": ("m",), **options})


def test_origins_as_browsers_send_them_are_taken() -> None:
    origins = ("*", "null", "https://chat.example", "http://localhost:3000", "http://[::1]:80", "app://x")
    config = ServerConfig(served_model_names=("m",), allowed_origins=origins, root_path="/a/b.c-d_e~f")
    assert config.allowed_origins == origins


def test_keys_are_not_shown() -> None:
    config = ServerConfig(served_model_names=("m",), api_keys=("secret",))
    assert "secret" not in repr(config)
    with pytest.raises(ConfigError) as refused:
        ServerConfig(served_model_names=("m",), api_keys=("sec ret",))
    assert "sec" not in str(refused.value).replace("--api-key", "")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", ""), ("/", ""), ("llm", "/llm"), ("/llm/", "/llm"), (" //a//b/ ", "/a/b")],
)
def test_a_root_path_has_one_form(text: str, wanted: str) -> None:
    assert root_path_of(text) == wanted


@pytest.mark.parametrize(
    ("options", "device", "seqs", "tokens"),
    [
        pytest.param({}, "cpu", 64, 256, id="cpu"),
        pytest.param({}, "cuda:0", 256, 8192, id="cuda"),
        pytest.param({"max_num_seqs": 512}, "cpu", 512, 512, id="budget-grows-with-seqs"),
        pytest.param({"max_num_batched_tokens": 32}, "cpu", 32, 32, id="seqs-shrink-with-budget"),
        pytest.param({"max_num_seqs": 3, "max_num_batched_tokens": 40}, "cuda", 3, 40, id="as-given"),
    ],
)
def test_automatic_budgets_follow_the_device(
    options: dict[str, Any], device: str, seqs: int, tokens: int
) -> None:
    config = EngineConfig(model="/model", **options).for_device(device)
    assert (config.device, config.max_num_seqs, config.max_num_batched_tokens) == (
        device.split(":")[0],
        seqs,
        tokens,
    )
    assert config.for_device(device) == config


@pytest.mark.parametrize(
    ("options", "device", "beside", "long"),
    [
        pytest.param({}, "cpu", (32, 6, 1536), 256, id="cpu"),
        pytest.param({}, "cuda:0", (2048, 6, 0), 2048, id="cuda"),
        pytest.param({"max_prefill_tokens_beside_decodes": 7}, "cpu", (7, 0, 0), 256, id="beside-as-given"),
        pytest.param({"long_prompt_tokens": 9}, "cpu", (32, 6, 1536), 9, id="long-as-given"),
    ],
)
def test_automatic_shares_of_prompts_follow_the_device(
    options: dict[str, Any], device: str, beside: tuple[int, int, int], long: int
) -> None:
    config = EngineConfig(model="/model", **options).for_device(device)
    assert beside == (
        config.max_prefill_tokens_beside_decodes,
        config.prefill_per_request,
        config.prefill_context_price,
    )
    assert config.long_prompt_tokens == long
    assert config.for_device(device) == config


@pytest.mark.parametrize(("given", "is_followed"), [(0, True), (7, False)])
def test_steps_are_followed_unless_a_limit_is_given(given: int, is_followed: bool) -> None:
    config = EngineConfig(model="/model", max_prefill_tokens_beside_decodes=given).for_device("cpu")
    assert (config.prefill_stretch > 0) is is_followed


@pytest.mark.parametrize(
    ("options", "device", "wanted"),
    [
        pytest.param({}, "cuda", 512, id="automatic"),
        pytest.param({"max_recorded_tokens": 1}, "cuda", 1, id="none"),
        pytest.param({"max_recorded_tokens": 2048}, "cuda", 2048, id="as-given"),
        pytest.param({"max_num_batched_tokens": 300}, "cuda", 300, id="no-more-than-a-step-has"),
        pytest.param({}, "cpu", 0, id="nothing-to-record"),
    ],
)
def test_steps_with_prompts_are_recorded_up_to_a_size(
    options: dict[str, Any], device: str, wanted: int
) -> None:
    config = EngineConfig(model="/model", **options).for_device(device)
    assert config.max_recorded_tokens == wanted
    assert config.for_device(device) == config


@pytest.mark.parametrize(
    ("given", "available", "wanted"),
    [
        pytest.param(0, 64 * 1024**3, MAX_CPU_KV_CACHE_BYTES, id="capped"),
        pytest.param(0, 1000, 450, id="half-of-the-fraction"),
        pytest.param(7, 1000, 7, id="as-given"),
    ],
)
def test_kv_cache_on_a_cpu_leaves_room(given: int, available: int, wanted: int) -> None:
    assert EngineConfig(model="/model", kv_cache_bytes=given).cpu_kv_cache_bytes(available) == wanted


def test_engine_config_survives_the_way_to_its_process() -> None:
    config = EngineConfig(
        model="/models/größe", dtype="float32", max_model_len=99, seed=5, prefix_caching=False
    )
    assert EngineConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["", "{}", '{"model": 5}', '{"model": "/m", "block_size": "16"}'])
def test_unreadable_engine_config_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        EngineConfig.from_json(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", 0),
        ("1073741824", 2**30),
        ("512Mi", 512 * 2**20),
        ("1.5Gi", 3 * 2**29),
        ("2G", 2 * 10**9),
        ("3k", 3000),
    ],
)
def test_parse_bytes(text: str, wanted: int) -> None:
    assert parse_bytes(text, "--flag") == wanted


@pytest.mark.parametrize(
    "text", ["", "Gi", "-1", "1 Gi", "1gb", "1GiB", "nan", "inf", "1e300", "1MG", "1_0", "9999999999999Ti"]
)
def test_parse_bytes_refuses_what_is_not_an_amount(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--flag is .*512Mi"):
        parse_bytes(text, "--flag")
