import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_builders import DEADLINE_S, EnginePeer, engine_in_thread
from runtime_builders import FakeRunner, make_engine_config, make_request

from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import Runner, StepPlan
from stoker_runtime.engine.process import load_for_good
from stoker_runtime.errors import ConfigError, ModelError
from stoker_runtime.messages import Shutdown

FAKE_ENGINE = Path(__file__).parents[2] / "fake_engine.py"


@contextmanager
def engine_process(
    tmp_path: Path, program: Path = FAKE_ENGINE, **environment: str
) -> Iterator[tuple[EnginePeer, subprocess.Popen[bytes]]]:
    """Start the engine process around FakeRunner and wait until it has connected."""
    address = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(address))
        listener.listen(1)
        listener.settimeout(DEADLINE_S)
        command = [sys.executable, str(program), "--socket", str(address)]
        command += ["--config", make_engine_config(block_size=4).to_json()]
        process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE)
        try:
            accepted, _ = listener.accept()
            with accepted:
                yield EnginePeer(accepted), process
        finally:
            process.kill()
            process.communicate(timeout=DEADLINE_S)


def test_serves_as_a_process_and_ends_with_status_0(tmp_path: Path) -> None:
    with engine_process(tmp_path) as (peer, process):
        assert peer.read_ready().block_size == 4
        peer.send(make_request(request_id="a", max_tokens=3))
        assert len(peer.read_to_end("a")["a"]) == 3
        peer.send(Shutdown())
        assert process.wait(DEADLINE_S) == 0


def test_ctrl_c_and_sigterm_are_left_to_the_server(tmp_path: Path) -> None:
    with engine_process(tmp_path) as (peer, process):
        peer.read_ready()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        peer.send(make_request(request_id="a", max_tokens=1))
        peer.read_to_end("a")
        assert process.poll() is None


def test_ends_in_the_middle_of_a_step_when_the_server_dies(tmp_path: Path) -> None:
    with engine_process(tmp_path, FAKE_ENGINE_STEP_S="3600") as (peer, process):
        peer.read_ready()
        peer.send(make_request())
        peer.sock.close()
        assert process.wait(DEADLINE_S) == 0


def test_killed_engine_closes_the_socket(tmp_path: Path) -> None:
    with engine_process(tmp_path, FAKE_ENGINE_STEP_S="0.01") as (peer, process):
        peer.read_ready()
        peer.send(make_request(max_tokens=200))
        peer.read_step()
        process.kill()
        while peer.sock.recv(65536):
            continue  # what it had sent before
        assert process.wait(DEADLINE_S) == -signal.SIGKILL


TELL_ENVIRONMENT = """
import os, sys
from stoker_runtime.engine.process import main
from stoker_runtime.errors import ModelError

def load(config):
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    raise ModelError(" ".join([*(os.environ.get(name, "-") for name in names), str("torch" in sys.modules)]))

sys.exit(main(load))
"""


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        pytest.param({}, "1 1 - 20000 False", id="default"),
        pytest.param({"GOMP_SPINCOUNT": "7"}, "1 1 - 7 False", id="own-count"),
        pytest.param({"OMP_WAIT_POLICY": "PASSIVE"}, "1 1 PASSIVE - False", id="own-policy"),
    ],
)
def test_openmp_is_set_before_torch_is_imported(
    tmp_path: Path, environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "engine.py"
    program.write_text(TELL_ENVIRONMENT)
    with engine_process(tmp_path, program, **environment) as (peer, _process):
        assert peer.read_failed().message == said


def test_the_garbage_collector_rests_while_a_model_is_loaded() -> None:
    was_enabled: list[bool] = []
    loaded = FakeRunner()

    def load(_: EngineConfig) -> Runner:
        was_enabled.append(gc.isenabled())
        return loaded

    try:
        assert load_for_good(make_engine_config(), load) is loaded
        assert (was_enabled, gc.isenabled()) == ([False], True)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_failed_load_is_told_with_its_reason_and_status(tmp_path: Path) -> None:
    with engine_process(tmp_path, FAKE_ENGINE_FAIL_LOAD="UnsupportedModel") as (peer, process):
        failed = peer.read_failed()
        assert (failed.reason, failed.message) == ("UnsupportedModel", "/model cannot be loaded")
        assert process.wait(DEADLINE_S) == 3


def test_failed_step_is_told_and_ends_with_status_1(tmp_path: Path) -> None:
    with engine_process(tmp_path, FAKE_ENGINE_FAIL_AT_STEP="2") as (peer, process):
        peer.read_ready()
        peer.send(make_request(max_tokens=5))
        failed = peer.read_failed()
        assert failed.reason == "EngineCrashed"
        assert failed.message == "RuntimeError: step 2 failed as asked"
        assert process.wait(DEADLINE_S) == 1


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        pytest.param(ModelError("no such file", reason="ModelNotFound"), "ModelNotFound", 3, id="model"),
        pytest.param(ConfigError("--dtype is wrong"), "InvalidConfig", 2, id="config"),
        pytest.param(MemoryError("64 GiB"), "OutOfMemory", 3, id="memory"),
        pytest.param(OSError("disk"), "EngineCrashed", 1, id="anything-else"),
    ],
)
def test_why_loading_failed(error: Exception, reason: str, status: int) -> None:
    def load(_config: EngineConfig) -> Runner:
        raise error

    with engine_in_thread(load_runner=load) as (peer, statuses):
        failed = peer.read_failed()
        assert failed.reason == reason
        assert str(error) in failed.message
        assert peer.read() is None
    assert statuses == [status]


def test_failure_is_logged_even_when_the_server_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    proceed = threading.Event()

    def fail(_plan: StepPlan) -> None:
        proceed.wait(DEADLINE_S)
        raise RuntimeError("the device fell off")

    with engine_in_thread(FakeRunner(on_step=fail)) as (peer, statuses):
        peer.read_ready()
        peer.send(make_request())
        peer.sock.close()
        proceed.set()
    assert statuses == [1]
    assert "the device fell off" in caplog.text
    assert "cannot tell the server why" in caplog.text
