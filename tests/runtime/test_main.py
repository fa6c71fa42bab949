"""The command line, up to where it hands over to the server or to the download."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stoker_runtime import __main__ as command_line
from stoker_runtime import machine, sources
from stoker_runtime.config import EngineConfig, ServerConfig
from stoker_runtime.errors import ModelError


@pytest.fixture(autouse=True)
def _own_process_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Keep signal handlers, STOKER_* variables and the termination message out of other tests."""
    for name in [name for name in os.environ if name.startswith("STOKER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STOKER_TERMINATION_LOG", str(tmp_path / "termination-log"))
    handler = signal.getsignal(signal.SIGTERM)
    root = logging.getLogger()
    log_handlers, level = root.handlers[:], root.level
    yield
    signal.signal(signal.SIGTERM, handler)
    root.handlers[:] = log_handlers
    root.setLevel(level)


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ServerConfig, EngineConfig]]:
    """Take the server's place; returns what it was called with. It reports a drained exit."""
    calls: list[tuple[ServerConfig, EngineConfig]] = []

    def run_server(server_config: ServerConfig, engine_config: EngineConfig) -> int:
        calls.append((server_config, engine_config))
        return 0

    lifecycle = importlib.import_module("stoker_runtime.server.lifecycle")
    monkeypatch.setattr(lifecycle, "run_server", run_server)
    return calls


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that looks like a model to whoever only needs its path."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return path


def termination_message(tmp_path: Path) -> dict[str, str]:
    message = json.loads((tmp_path / "termination-log").read_text())
    assert isinstance(message, dict)
    return message


def test_defaults(model: Path, handed_over: list[tuple[ServerConfig, EngineConfig]]) -> None:
    assert command_line.main(["serve", "--model", str(model)]) == 0
    assert handed_over == [
        (
            ServerConfig(served_model_names=(str(model),), model=str(model)),
            EngineConfig(model=str(model), num_threads=machine.usable_cpus()),
        )
    ]


def test_every_flag_arrives(model: Path, handed_over: list[tuple[ServerConfig, EngineConfig]]) -> None:
    flags = """--served-model-name a --served-model-name b --host 127.0.0.1 --port 81 --device cpu
    --dtype float32 --quantization int8 --max-model-len 99 --max-num-seqs 5 --max-num-batched-tokens 77
    --max-prefill-tokens-beside-decodes 33 --long-prompt-tokens 44 --speculative ngram
    --max-recorded-tokens 55
    --async-scheduling off --kernel-choices defaults --kv-cache-dtype fp8
    --block-size 8 --memory-fraction 0.5 --kv-cache-memory 1Gi --no-prefix-caching --step-timeout-s 900
    --num-threads 3 --max-queue 6 --max-request-bytes 1Mi --shutdown-delay-s 1.5 --drain-timeout-s 7
    --log-level debug --seed 4 --keep-alive-timeout-s 75 --root-path llm/ --api-key k1 --api-key k2
    --allowed-origins https://a.example/ --allowed-origins http://B.example:3000 --allowed-methods get,POST
    --allowed-headers ["authorization","content-type"] --allow-credentials --sse-keep-alive-s 2.5
    --chat-template own.jinja --sanitize-control-tokens"""
    assert command_line.main(["serve", "--model", str(model), *flags.split()]) == 0
    assert handed_over == [
        (
            ServerConfig(
                served_model_names=("a", "b"),
                model=str(model),
                host="127.0.0.1",
                port=81,
                max_queue=6,
                max_request_bytes=2**20,
                step_timeout_s=900.0,
                sse_keep_alive_s=2.5,
                shutdown_delay_s=1.5,
                drain_timeout_s=7.0,
                keep_alive_timeout_s=75,
                root_path="/llm",
                api_keys=("k1", "k2"),
                allowed_origins=("https://a.example", "http://b.example:3000"),
                allowed_methods=("GET", "POST"),
                allowed_headers=("authorization", "content-type"),
                allow_credentials=True,
                chat_template="own.jinja",
                sanitize_control_tokens=True,
                log_level="debug",
            ),
            EngineConfig(
                model=str(model),
                device="cpu",
                dtype="float32",
                quantization="int8",
                speculative="ngram",
                async_scheduling="off",
                kernel_choices="defaults",
                kv_cache_dtype="fp8",
                max_model_len=99,
                max_num_seqs=5,
                max_num_batched_tokens=77,
                max_prefill_tokens_beside_decodes=33,
                long_prompt_tokens=44,
                max_recorded_tokens=55,
                block_size=8,
                memory_fraction=0.5,
                kv_cache_bytes=2**30,
                prefix_caching=False,
                num_threads=3,
                seed=4,
                log_level="debug",
            ),
        )
    ]


def test_environment_sets_what_flags_do_not(
    model: Path, handed_over: list[tuple[ServerConfig, EngineConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"MODEL": str(model), "PORT": "82", "MAX_QUEUE": "7", "NO_PREFIX_CACHING": "true", "SEED": "1"}
    for name, value in {**values, "SERVED_MODEL_NAME": "a b"}.items():
        monkeypatch.setenv(f"STOKER_{name}", value)
    assert command_line.main(["serve", "--port", "83"]) == 0
    ((server, engine),) = handed_over
    assert (server.port, server.max_queue, server.served_model_names) == (83, 7, ("a", "b"))
    assert (engine.prefix_caching, engine.seed) == (False, 1)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        pytest.param([], "--model", id="no-model"),
        pytest.param(["--model", ""], "--model", id="empty-model"),
        pytest.param(["--model", "m", "--port", "http"], "--port", id="port"),
        pytest.param(["--model", "m", "--port", "-5"], "--port", id="negative-port"),
        pytest.param(["--model", "m", "--device", "tpu"], "--device", id="device"),
        pytest.param(["--model", "m", "--max-num-seqs", "many"], "--max-num-seqs", id="not-a-number"),
        pytest.param(["--model", "m", "--block-size", "0"], "--block-size", id="out-of-range"),
        pytest.param(["--model", "m", "--kv-cache-memory", "2 GB"], "--kv-cache-memory", id="not-a-quantity"),
        pytest.param(["--model", "m", "--max-request-bytes", "x"], "--max-request-bytes", id="body"),
        pytest.param(["--model", "m", "--step-timeout-s", "0"], "--step-timeout-s", id="step-timeout"),
        pytest.param(["--model", "m", "--tensor-parallel", "2"], "--tensor-parallel", id="unknown-flag"),
        pytest.param(["--model", "m", "--api-key", ""], "--api-key", id="empty-key"),
        pytest.param(["--model", "m", "--api-key-file", "none"], "--api-key-file", id="no-key-file"),
        pytest.param(["--model", "m", "--root-path", "/a b"], "--root-path", id="root-path"),
        pytest.param(
            ["--model", "m", "--keep-alive-timeout-s", "0"], "--keep-alive-timeout-s", id="keep-alive"
        ),
        pytest.param(["--model", "m", "--allowed-origins", "x"], "--allowed-origins", id="origin"),
        pytest.param(["--model", "m", "--allowed-origins", '["x'], "--allowed-origins", id="not-a-list"),
        pytest.param(["--model", "m", "--allowed-methods", "[1]"], "--allowed-methods", id="no-names"),
        pytest.param(["--model", "m", "--allow-credentials"], "--allowed-origins", id="credentials"),
        pytest.param(["--model", "no-such-folder"], "--model", id="not-a-model"),
    ],
)
def test_wrong_setting_ends_with_status_2_and_says_which(
    flags: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["serve", *flags]) == 2
    message = termination_message(tmp_path)
    assert message["reason"] == "InvalidConfig"
    assert named in message["message"]
    assert named in capsys.readouterr().err


Handed = list[tuple[ServerConfig, EngineConfig]]


@pytest.mark.parametrize(
    "value",
    ["https://a.example,http://b.example:3000/", '["https://a.example", "http://b.example:3000"]'],
    ids=["commas", "json"],
)
def test_origins_may_be_one_list(
    model: Path, handed_over: Handed, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    assert command_line.main(["serve", "--model", str(model), "--allowed-origins", value]) == 0
    monkeypatch.setenv("STOKER_ALLOWED_ORIGINS", value)
    assert command_line.main(["serve", "--model", str(model)]) == 0

    wanted = ("https://a.example", "http://b.example:3000")
    assert [server.allowed_origins for server, _ in handed_over] == [wanted, wanted]
    assert handed_over[0][0].allowed_methods == ("*",)


def test_keys_come_from_a_variable_and_a_file(
    model: Path, handed_over: Handed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text("of-the-file\n\n  another \n")
    monkeypatch.setenv("STOKER_API_KEY", "old new")
    assert command_line.main(["serve", "--model", str(model)]) == 0
    assert command_line.main(["serve", "--model", str(model), "--api-key-file", str(file)]) == 0
    monkeypatch.delenv("STOKER_API_KEY")
    monkeypatch.setenv("STOKER_API_KEY_FILE", str(file))
    assert command_line.main(["serve", "--model", str(model), "--api-key", "given"]) == 0

    assert [server.api_keys for server, _ in handed_over] == [
        ("old", "new"),
        ("old", "new", "of-the-file", "another"),
        ("given", "of-the-file", "another"),
    ]


@pytest.mark.parametrize("name", ["STOKER_API_KEY", "STOKER_API_KEY_FILE"])
@pytest.mark.parametrize("value", ["", " \n"])
def test_an_empty_secret_does_not_open_the_server(
    model: Path, handed_over: Handed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert command_line.main(["serve", "--model", str(model)]) == 2
    assert name in termination_message(tmp_path)["message"]
    assert handed_over == []


def test_a_file_without_keys_does_not_open_the_server(
    model: Path, handed_over: Handed, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(" \n\n")
    assert command_line.main(["serve", "--model", str(model), "--api-key-file", str(file)]) == 2
    assert "--api-key-file" in termination_message(tmp_path)["message"]
    assert handed_over == []


def test_port_that_a_service_injected_is_explained(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STOKER_PORT", "tcp://10.0.0.1:80")
    assert command_line.main(["serve", "--model", str(model)]) == 2
    assert "enableServiceLinks" in termination_message(tmp_path)["message"]


def test_missing_model_ends_with_status_3_and_its_reason(tmp_path: Path) -> None:
    assert command_line.main(["serve", "--model", str(tmp_path / "none")]) == 3
    assert termination_message(tmp_path)["reason"] == "ModelNotFound"


def test_what_fails_once_logging_is_set_up_is_a_json_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run_server(server_config: ServerConfig, engine_config: EngineConfig) -> int:
        raise ModelError("no room", reason="OutOfMemory")

    lifecycle = importlib.import_module("stoker_runtime.server.lifecycle")
    monkeypatch.setattr(lifecycle, "run_server", run_server)
    assert command_line.main(["serve", "--model", str(model)]) == 3

    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["level"], line["message"], line["reason"]) for line in lines] == [
        ("ERROR", "no room", "OutOfMemory")
    ]


def test_exit_status_of_the_server_is_ours(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lifecycle = importlib.import_module("stoker_runtime.server.lifecycle")
    monkeypatch.setattr(lifecycle, "run_server", lambda server_config, engine_config: 1)
    assert command_line.main(["serve", "--model", str(model)]) == 1


def test_fetch_downloads_with_the_token_of_the_named_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, Path, str | None]] = []

    def fetch(source: str, destination: Path, *, token: str | None = None) -> Path:
        calls.append((source, destination, token))
        return destination

    monkeypatch.setattr(sources, "fetch", fetch)
    monkeypatch.setenv("MY_TOKEN", "secret")
    arguments = ["fetch", "--source", "hf://org/name@v1", "--destination", str(tmp_path)]
    assert command_line.main([*arguments, "--token-env", "MY_TOKEN"]) == 0
    assert command_line.main([*arguments, "--token-env", "UNSET"]) == 0
    assert calls == [("hf://org/name@v1", tmp_path, "secret"), ("hf://org/name@v1", tmp_path, None)]


def test_failed_fetch_ends_with_status_3_and_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fetch(source: str, destination: Path, *, token: str | None = None) -> Path:
        raise ModelError(f"{source} is private", reason="ModelAccessDenied")

    monkeypatch.setattr(sources, "fetch", fetch)
    assert command_line.main(["fetch", "--source", "hf://org/name", "--destination", str(tmp_path)]) == 3
    assert termination_message(tmp_path) == {
        "reason": "ModelAccessDenied",
        "message": "hf://org/name is private",
    }


@pytest.mark.parametrize("command", ["serve", "fetch"])
def test_help_names_every_flag_with_its_variable(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main([command, "--help"]) == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for parameter in command_line.cli.commands[command].params:
        flag = parameter.opts[0]
        assert flag in text
        assert f"STOKER_{flag.removeprefix('--').replace('-', '_').upper()}" in text


def test_runs_as_a_module_without_loading_torch_or_a_web_framework() -> None:
    code = "import sys, stoker_runtime.__main__ as m; m.main(['serve', '--help']); print(sorted(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    modules = output.splitlines()[-1]
    assert "'stoker_runtime.config'" in modules
    assert all(f"'{name}'" not in modules for name in ("torch", "fastapi", "uvicorn", "huggingface_hub"))


def test_sigterm_before_the_server_runs_ends_the_process(tmp_path: Path) -> None:
    """As a container's first process it would ignore SIGTERM, and a download would outlive its pod."""
    with socket.socket() as hub:
        hub.bind(("127.0.0.1", 0))
        hub.listen()
        hub.settimeout(60)
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}"}
        command = [sys.executable, "-m", "stoker_runtime", "fetch", "--source", "hf://org/name"]
        process = subprocess.Popen([*command, "--destination", str(tmp_path)], env=environment)
        try:
            asked, _ = hub.accept()
            with asked:
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 128 + signal.SIGTERM
        finally:
            process.kill()
            process.wait(20)
