"""A server and its engine as processes, without a model: `python tests/server_process.py serve|engine ...`.

The server is the real one and so is the engine but for its runner, which computes integers at a fixed pace.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

STEP_S = 0.005
DEADLINE_S = 60.0
_FAILURE_VARIABLE = "STOKER_TEST_ENGINE_FAILS"


def _serve(model: str, settings: str) -> int:
    from stoker_runtime import logs, termination
    from stoker_runtime.config import EngineConfig, ServerConfig
    from stoker_runtime.errors import StokerError
    from stoker_runtime.server.lifecycle import run_server

    logs.configure("info", "server")
    server = ServerConfig(served_model_names=("tiny",), host="127.0.0.1", **json.loads(settings))
    engine = EngineConfig(model=model, device="cpu", max_num_seqs=8)
    try:
        return run_server(server, engine, (sys.executable, __file__, "engine"))
    except StokerError as error:
        reason = termination.reason_of(error)
        termination.report(reason, str(error))
        return termination.exit_status(reason)


def _engine(arguments: list[str]) -> int:
    from runtime_builders import FakeRunner

    from stoker_runtime.config import EngineConfig
    from stoker_runtime.core.step import Runner, StepPlan
    from stoker_runtime.engine.process import main
    from stoker_runtime.errors import ModelError

    pace = threading.Event()

    def wait(plan: StepPlan) -> None:
        pace.wait(STEP_S)

    def load(config: EngineConfig) -> Runner:
        if os.environ.get(_FAILURE_VARIABLE) == "load":
            raise ModelError("tensor q_proj is missing", reason="InvalidModel")
        return FakeRunner(
            num_blocks=512,
            block_size=16,
            vocab_size=256,
            max_model_len=4096,
            on_step=wait,
        )

    return main(load, arguments)


def make_model_folder(folder: Path) -> Path:
    """Write the text side of a model as a Hugging Face directory."""
    from server_builders import make_byte_level_tokenizer

    folder.mkdir()
    make_byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 257}))
    return folder


async def until_status(http: httpx2.AsyncClient, path: str, status: int) -> httpx2.Response:
    """Ask until an answer has this status."""
    pause = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S):
        while (response := await http.get(path)).status_code != status:
            try:
                await asyncio.wait_for(pause.wait(), 0.02)
            except TimeoutError:
                continue
    return response


@dataclass
class ServerProcess:
    """A running server process."""

    process: asyncio.subprocess.Process
    termination_log: Path
    lines: list[dict[str, object]] = field(default_factory=list)  # its log

    def logged(self, message: str) -> dict[str, object] | None:
        """Return the first log line with this message."""
        return next((line for line in self.lines if line.get("message") == message), None)

    async def until_logged(self, message: str) -> dict[str, object]:
        """Wait for a log line."""
        async with asyncio.timeout(DEADLINE_S):
            while (line := self.logged(message)) is None:
                assert self.process.stderr is not None
                text = await self.process.stderr.readline()
                assert text, f"the server ended without logging {message!r}: {self.lines}"
                self.lines.append(json.loads(text))
        return line

    async def until_ended(self) -> int:
        """Wait for its end and return the exit status; a negative one is a signal."""
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            while text := await self.process.stderr.readline():
                self.lines.append(json.loads(text))
            return await self.process.wait()

    def terminate(self) -> None:
        """Send SIGTERM, as a kubelet does."""
        self.process.send_signal(signal.SIGTERM)

    @property
    def termination(self) -> dict[str, str]:
        """Return the termination message."""
        message: dict[str, str] = json.loads(self.termination_log.read_text())
        return message


@asynccontextmanager
async def server_process(
    model: Path, folder: Path, engine_fails: str = "", **settings: object
) -> AsyncIterator[tuple[ServerProcess, httpx2.AsyncClient]]:
    """Run a server over an engine of integers; see running_process."""
    command = [__file__, "serve", str(model), json.dumps({"port": 0, **settings})]
    # Where this process finds the packages, which need not be where they are installed.
    folders = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(folders), _FAILURE_VARIABLE: engine_fails}
    async with running_process(command, folder, environment) as running:
        yield running


@asynccontextmanager
async def running_process(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[ServerProcess, httpx2.AsyncClient]]:
    """Run a server process that logs the port it listens on; kills it at the end should it still run.

    Args:
        command: arguments of the Python interpreter.
        folder: where the termination message goes.
        environment: variables added to this process' own.
    """
    termination_log = folder / "termination.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env={**os.environ, "STOKER_TERMINATION_LOG": str(termination_log), **(environment or {})},
        stderr=asyncio.subprocess.PIPE,
    )
    server = ServerProcess(process, termination_log)
    try:
        port = (await server.until_logged("listening"))["port"]
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S) as http:
            yield server, http
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    sys.exit(_serve(*rest) if mode == "serve" else _engine(rest))
