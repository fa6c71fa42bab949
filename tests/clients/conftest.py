"""The server that clients are tried against, and how a client's program is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from clients.programs.cells import Task
from server_builders import smollm2_assets, smollm2_path

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENTS = REPOSITORY / ".venv-clients"
PROGRAMS = Path(__file__).parent / "programs"
NODE_PROGRAMS = Path(__file__).parent / "node"
READY_S = 120.0
PROGRAM_S = 240.0

# Nothing may leave the machine: a library that tries all the same finds no proxy and fails at once.
ALONE = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OTEL_SDK_DISABLED": "true",
    "PYDANTIC_AI_DISABLE_UPDATE_CHECK": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


@dataclass(frozen=True)
class Told:
    """What a client's program told: each cell's result, and what it wrote beside."""

    results: Mapping[str, Any]
    stderr: str


RunProgram = Callable[[str, str], Told]
Complete = Callable[..., dict[str, Any]]


class Server:
    """`stoker-runtime serve` with the example model, on a free port of the loopback."""

    def __init__(self, folder: Path) -> None:
        flags = ["--model", str(smollm2_path()), "--served-model-name", "smollm2", "--host", "127.0.0.1"]
        limits = ["--port", "0", "--max-model-len", "2048", "--shutdown-delay-s", "0", "--dtype", "float32"]
        limits += ["--num-threads", "1"]  # the clients need the other core, and two wait for each other
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stoker_runtime", "serve", *flags, *limits],
            env={**os.environ, "STOKER_TERMINATION_LOG": str(folder / "termination.json")},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._is_open = True
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        self.process.stderr.close()

    def until_logged(self, message: str) -> dict[str, Any]:
        """Wait for the first log line with this message."""

        def found() -> dict[str, Any] | None:
            return next((line for line in self.lines if line.get("message") == message), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or not self._is_open, READY_S)
            line = found()
        assert line is not None, f"the server did not log {message!r}: {self.lines}"
        return line

    def stop(self) -> int:
        """End it as a kubelet does, and return its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(READY_S)
        finally:
            self.process.kill()
            self._reader.join()


@pytest.fixture(scope="session")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API's address at a server that is ready."""
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        port = server.until_logged("listening")["port"]
        server.until_logged("ready")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        status = server.stop()
    assert status == 0


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example model's tokenizer as files that Hugging Face's libraries read."""
    folder = tmp_path_factory.mktemp("tokenizer")
    assets = smollm2_assets()
    assets.tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": assets.bos_token,
        "eos_token": assets.eos_token,
        "chat_template": assets.chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def task(base_url: str, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    """What every client is told to ask."""
    return Task(
        base_url=base_url,
        model="smollm2",
        question="Name three colours of the rainbow.",
        prompt="Once upon a time",
        max_tokens=8,
        seed=7,
        tokenizer=str(tokenizer),
        folder=str(tmp_path_factory.mktemp("written")),
    )


@pytest.fixture(scope="session")
def run_program(request: pytest.FixtureRequest) -> RunProgram:
    """Run a client's program, once in a session, and return what it told."""
    if not (ENVIRONMENTS / ".installed").exists():
        said = "the clients are not installed; `make clients` does it"
        if "CI" in os.environ:
            pytest.fail(said)
        pytest.skip(said)
    task: Task = request.getfixturevalue("task")

    @cache
    def run(environment: str, program: str) -> Told:
        if program.endswith(".mjs"):
            command = [ENVIRONMENTS / environment / "bin" / "node", NODE_PROGRAMS / program]
        else:
            command = [ENVIRONMENTS / environment / "bin" / "python", PROGRAMS / program]
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        variables |= {**ALONE, "HF_HOME": task.folder, "XDG_CACHE_HOME": task.folder}
        done = subprocess.run(
            [*command, json.dumps(asdict(task))],
            env=variables,
            cwd=task.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=PROGRAM_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return Told(json.loads(done.stdout.splitlines()[-1]), done.stderr)

    return run


@pytest.fixture(scope="session")
def complete(task: Task) -> Iterator[Complete]:
    """Ask the server without any client; returns the answer's JSON. The same is asked only once."""
    with httpx2.Client(timeout=READY_S) as http:

        @cache
        def post(path: str, body: str) -> dict[str, Any]:
            headers = {"content-type": "application/json"}
            answer = http.post(f"{task.base_url}{path}", content=body, headers=headers)
            assert answer.status_code == 200, answer.text
            told: dict[str, Any] = answer.json()
            return told

        def ask(path: str, **fields: object) -> dict[str, Any]:
            sampling = {"temperature": 0, "seed": task.seed, "max_tokens": task.max_tokens}
            return post(path, json.dumps({"model": task.model, **sampling, **fields}))

        yield ask
