"""The engine as a process: connect to the server, load the model, serve, and say why when that fails."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Sequence

from stoker_runtime import logs, termination
from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import Runner
from stoker_runtime.engine.connection import Connection
from stoker_runtime.engine.engine import Engine
from stoker_runtime.engine.loop import HEARTBEAT_S, run_loop
from stoker_runtime.errors import StokerError
from stoker_runtime.messages import EngineFailed

LoadRunner = Callable[[EngineConfig], Runner]

logger = logging.getLogger(__name__)

_FAREWELL_S = 5.0
# How long a thread of libgomp spins for another before it sleeps. Spinning starves whoever it waits for once
# the cores are shared with other pods; sleeping at once costs a switch per operation. SmolLM2's output tokens
# per second on 2 cores, alone / beside 3 busy processes: 19 / 1.7 with the default of 300,000, 18 / 3.5 with
# this, 14 / 5.8 without spinning.
_SPIN_COUNT = 20_000
_HANG_UP = select.POLLHUP | getattr(select, "POLLRDHUP", 0)


def main(load_runner: LoadRunner, arguments: Sequence[str] | None = None) -> int:
    """Run the process.

    Args:
        load_runner: loads the model that the configuration names.
        arguments: the command line without the program's name; None takes sys.argv.

    Returns:
        The exit status: 0 after Shutdown, else what `termination.exit_status` says.

    Raises:
        ConfigError: --config cannot be read.
        OSError: nobody listens at --socket.
    """
    parser = argparse.ArgumentParser(prog="stoker_runtime.engine", description=__doc__, allow_abbrev=False)
    parser.add_argument("--socket", required=True, help="Unix socket that the server listens on")
    parser.add_argument("--config", required=True, help="EngineConfig as JSON")
    options = parser.parse_args(arguments)
    config = EngineConfig.from_json(options.config)
    logs.configure(config.log_level, "engine")
    # A terminal's Ctrl-C and a container's stop may reach the whole group. The server drains and then says
    # Shutdown; should it die instead, its socket closes and this process ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # OpenMP reads it once, when torch is imported, and would count the node's cores rather than the pod's.
    os.environ.setdefault("OMP_NUM_THREADS", str(config.num_threads))
    # Numpy multiplies nothing here, but its library would start as many threads, which spin for a while.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_COUNT))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(options.socket)
        threading.Thread(target=_end_with_server, args=(sock.fileno(),), daemon=True).start()
        return serve(Connection(sock), config, lambda config: load_for_good(config, load_runner))


def serve(
    connection: Connection, config: EngineConfig, load_runner: LoadRunner, heartbeat_s: float = HEARTBEAT_S
) -> int:
    """Load the model and serve it over an open connection.

    Args:
        connection: to the server.
        config: names the model.
        load_runner: loads it.
        heartbeat_s: how often an idle engine says that it is alive.

    Returns:
        The exit status. Whatever goes wrong is logged and told to the server as EngineFailed.
    """
    try:
        runner = load_runner(config)
        engine = Engine(runner, config)
        connection.send(runner.ready())
        run_loop(engine, connection, heartbeat_s)
    except Exception as error:
        is_expected = isinstance(error, StokerError)
        logger.error("the engine failed: %s", error, exc_info=None if is_expected else error)
        message = str(error) if is_expected else f"{type(error).__name__}: {error}"
        failed = EngineFailed(reason=termination.reason_of(error), message=message)
        _tell(connection, failed)
        return termination.exit_status(failed.reason)
    return 0


def load_for_good(config: EngineConfig, load_runner: LoadRunner) -> Runner:
    """Load, then hide what was loaded from the garbage collector, which would walk it for nothing.

    Meanwhile it stays off: as a load only adds objects, it would run again and again and find nothing.
    """
    gc.disable()
    runner = load_runner(config)
    gc.collect()
    gc.freeze()
    gc.enable()
    return runner


def _tell(connection: Connection, failed: EngineFailed) -> None:
    try:
        connection.send(failed)
        connection.flush(_FAREWELL_S)
    except OSError as error:
        # The server learns it anyway: this process exits non-zero and its socket closes.
        logger.error("cannot tell the server why: %s", error)


def _end_with_server(fd: int) -> None:
    """End this process when the server's end of the socket closes, also in the middle of a load or a step."""
    poll = select.poll()
    poll.register(fd, _HANG_UP)
    poll.poll()
    os._exit(0)
